// A lens in a frame says how high it is, and is told the theme.
const frames = document.querySelectorAll("iframe.lens");
const dress = (frame) => frame.contentWindow.postMessage({ theme: document.documentElement.dataset.theme }, "*");
addEventListener("message", ({ source, data }) => {
  for (const frame of frames) {
    if (frame.contentWindow !== source || !(data?.lens > 0)) continue;
    frame.style.height = `${data.lens + 2}px`; // and its border
    dress(frame);
  }
});
new MutationObserver(() => frames.forEach(dress)).observe(document.documentElement, { attributeFilter: ["data-theme"] });

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
