// A lens in a frame says how high it is.
addEventListener("message", ({ source, data }) => {
  for (const frame of document.querySelectorAll("iframe.lens")) {
    if (frame.contentWindow === source && data?.lens > 0) frame.style.height = `${data.lens}px`;
  }
});

// A button that copies a block of code.
for (const code of document.querySelectorAll(".bd-article [class*=highlight-]:not(.highlight-text) pre")) {
  if (code.closest(".cell_output")) continue;
  const button = document.createElement("button");
  button.className = "copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code.textContent.trimEnd());
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  code.parentElement.append(button);
}
