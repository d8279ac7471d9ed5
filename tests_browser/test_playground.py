"""The playground in Node and in headless Chromium, from a plain static server: the answers are
torch's, nothing else is asked for, and hostile text stays text.

    make test-browser

Its models are the bundled teacher and the run's students that ``COMET_RUN`` names, or the bundled
ones, or, where there are none, students with random weights.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from transformers import set_seed

from comet_lib.data import load_sentiment
from comet_lib.evaluation import predict_probabilities
from comet_lib.loading import load_model, load_tokenizer
from comet_lib.models import build_student, student_config
from comet_lib.profiles import ASSETS, LABELS, TINY, get_profile
from comet_lib.ship import onnx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tools"))
import build_playground  # noqa: E402

NODE = shutil.which("node")
HOSTILE = [
    "</script><script>window.ran=1</script>",
    "<img src=x onerror=window.ran=1>",
    "a\u202eb <s> </s> 🙂 ọjọ́",
    "x" * 990,
    "",
]


def students(folder: Path) -> dict[str, Path]:
    """The students to build with; random ones in ``folder`` where there are no trained ones."""
    run = os.environ.get("COMET_RUN")
    if run or build_playground.STUDENTS.is_dir():
        return build_playground.models(Path(run) if run else None)
    found = {"teacher": ASSETS / "teacher"}
    for seed, name in enumerate(list(build_playground.TITLES)[1:]):
        set_seed(seed)
        config = student_config(get_profile("laptop"), load_model(ASSETS / "teacher"))
        config.id2label = dict(enumerate(LABELS))
        build_student(config).save_pretrained(folder / name)
        found[name] = folder / name
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if NODE is None or not (build_playground.SOURCE / "node_modules").is_dir():
        pytest.skip("the playground's packages are not there: npm ci in playground/")
    folder = tmp_path_factory.mktemp("playground")
    models, out = students(folder / "models"), folder / "site"
    run = os.environ.get("COMET_RUN")
    trained = run or build_playground.STUDENTS.is_dir()
    before = build_playground.earlier(Path(run) if run else None, models) if trained else {}
    build_playground.build(models, before, out)
    (out / "fp32").mkdir()
    for name, model in models.items():
        shutil.copy(build_playground.exported(model) / onnx.GRAPH, out / "fp32" / f"{name}.onnx")
    shutil.copy(HERE / "answers.mjs", out)
    (folder / "models.json").write_text(json.dumps({k: str(v) for k, v in models.items()}))
    return out


@pytest.fixture(scope="module")
def wanted(site: Path) -> dict[str, Any]:
    """Torch's ids and probabilities for the whole sample."""
    data = load_sentiment(TINY)
    texts = [text for split in data.values() for text in split["text"]]
    tokenizer = load_tokenizer(ASSETS / "teacher")
    ids = tokenizer(texts, truncation=True, max_length=64)["input_ids"]
    found = {"texts": texts, "ids": ids}
    for name, folder in json.loads((site.parent / "models.json").read_text()).items():
        found[name] = predict_probabilities(load_model(folder), tokenizer, texts)
    return found


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """A plain static server."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture
def look(browser: Any, address: str) -> Iterator[Any]:
    """Opens the page; every request to another host is refused, and none may have been tried."""
    opened, others, troubles = [], [], []

    def guard(route: Any) -> None:
        if route.request.url.startswith(address):
            return route.continue_()
        others.append(route.request.url)
        return route.abort()

    def open_page(width: int = 1280, height: int = 900, scheme: str = "light") -> Any:
        view = {"width": width, "height": height}
        page = browser.new_context(viewport=view, color_scheme=scheme).new_page()
        page.set_default_timeout(120_000)
        opened.append(page)
        page.route("**/*", guard)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda said: said.type == "error" and troubles.append(said.text))
        page.goto(address)
        page.wait_for_selector("body[data-answered]")
        return page

    yield open_page
    assert others == [] and troubles == []
    for page in opened:
        page.context.close()


def agree(found: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Same ids; fp32 within 1e-4 and with the same labels; int8 the same label for 99 %."""
    assert found["ids"] == wanted["ids"]
    for name in build_playground.TITLES:
        exact, small = (np.array(found[f"{name} {form}"]) for form in ("fp32", "int8"))
        equal = [(one.argmax(1) == wanted[name].argmax(1)).mean() for one in (exact, small)]
        strays = np.abs(exact - wanted[name]).max()
        print(f"{where}, {name}: fp32 off by {strays:.1e}, labels {equal[0]:.4f}, {equal[1]:.4f}")
        assert strays < onnx.TOLERANCE and equal[0] == 1
        # random students hardly prefer a label
        assert equal[1] >= 0.99 or (name != "teacher" and wanted[name].max() < 0.6)


def test_node_answers_as_torch_does(site: Path, wanted: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(wanted["texts"]), "utf-8")
    command = [str(NODE), HERE / "playground.mjs", site, tmp_path / "texts.json"]
    done = subprocess.run(command, capture_output=True, check=False, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    agree(json.loads(done.stdout), wanted, "Node")


def test_chromium_answers_as_torch_does(look: Any, wanted: dict[str, Any]) -> None:
    page = look()
    script = """async (texts) => {
        const { answers } = await import("./answers.mjs");
        return answers((path) => fetch(path), texts);
    }"""
    agree(page.evaluate(script, wanted["texts"]), wanted, "Chromium")


def test_it_answers_while_one_types_and_says_how_fast(look: Any, site: Path) -> None:
    page = look()
    size = page.evaluate(
        """performance.getEntries().filter((one) => one.encodedBodySize)
               .reduce((total, one) => total + one.encodedBodySize, 0)"""
    )
    first = page.evaluate("document.body.dataset.first")
    spent = []
    page.locator("#text").fill("")
    for word in ("Nimefurahi", "sana", "kuwaona", "marafiki", "zangu", "leo"):
        before = page.locator("#text").input_value()
        page.locator("#text").press_sequentially(f"{word} ")
        page.wait_for_selector(f"body[data-answered='{before}{word} ']")
        spent.append(int(page.evaluate("document.body.dataset.last")))
    print(f"first visit {size / 1e6:.2f} MB, first answer {first} ms, next answers {spent} ms")
    assert size < 8e6
    assert page.locator(".answer").count() == 3
    words = page.locator(".lens-word bdi").all_inner_texts()
    assert "".join(words[1:-1]) == "nimefurahisanakuwaonamarafikizanguleo"
    assert "three answers and the maps took" in page.locator("#status").inner_text()


def test_the_licenses_of_all_packages_are_there(site: Path) -> None:
    text = (site / "vendor" / build_playground.LICENSES).read_text("utf-8")
    for words in ("Apache License", "(c) Steve Sanderson", "Microsoft Corporation", "Igalia"):
        assert words in text
    assert text.count("Permission is hereby granted, free of charge") > 2


def test_an_example_is_answered_and_translated(look: Any, site: Path) -> None:
    page = look()
    listed = json.loads((site / "models.json").read_text("utf-8"))["examples"]
    page.locator("#examples").select_option(str(len(listed) - 1))
    assert page.locator("#text").input_value() == listed[-1]["text"]
    page.wait_for_function(
        "(text) => document.body.dataset.answered === text", arg=listed[-1]["text"]
    )
    assert all(one["english"] for one in listed)
    assert listed[-1]["english"] in page.locator("#english").inner_text()


def test_the_maps_are_those_of_the_library(look: Any, site: Path) -> None:
    """Header and maps as comet_lib computes them, up to what int8 loses."""
    from comet_lib.lens.reading import from_models

    page = look()
    text = "Daladala imeharibika njiani na nimechelewa kazini tena."
    found = page.evaluate(
        """async (text) => {
            const { open, load } = await import("./engine.mjs");
            const { lensData } = await import("./maps.mjs");
            const { tokenizer, models } = await open((path) => fetch(path));
            const { ids, tokens } = tokenizer.read(text);
            const [teacher, student] = [await models[0].answer(ids), await models[1].answer(ids)];
            return lensData(tokens, teacher.maps, [student.maps]).header;
        }""",
        text,
    )
    folders = json.loads((site.parent / "models.json").read_text())
    pair = [load_model(folders[name]) for name in ("teacher", "student")]
    wanted = from_models(*pair, load_tokenizer(ASSETS / "teacher"), text)
    assert len(found["tokens"]) == len(wanted.tokens) and found["matches"] == list(wanted.matches)
    for ours, theirs in (
        (found["js"], wanted.js),
        (found["cka"], wanted.cka),
        (found["teacherEntropy"], wanted.teacher_entropy),
        (found["studentEntropy"], wanted.student_entropy),
    ):
        np.testing.assert_allclose(ours, theirs, atol=0.05)


def test_the_student_s_training_is_played_when_asked_for(look: Any, site: Path) -> None:
    page = look()
    if not any(
        model["earlier"] for model in json.loads((site / "models.json").read_text())["models"]
    ):
        assert page.locator("#learn").is_hidden()
        return
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rsplit("/", 1)[-1]))
    page.locator("#learn").click()
    shown = page.locator(".lens-choice output")
    for name in ("untrained", "after stage 1", "trained"):
        shown.filter(has_text=name).wait_for()
        note = page.locator(".answer").nth(1).inner_text()
        assert (name in note and "cannot answer yet" in note) == (name != "trained")
    assert asked == ["untrained.onnx.xz", "after_stage_1.onnx.xz"]
    page.locator(".lens-play", has_text="Play").wait_for()
    apart = []
    for step in range(3):
        page.locator("input[type=range]").fill(str(step))
        apart.append(float(page.locator(".lens-apart").inner_text().split()[0]))
    assert apart[0] > 3 * apart[2]
    text = "Nimefurahi sana leo."
    page.locator("#text").fill(text)
    page.wait_for_function("(text) => document.body.dataset.answered === text", arg=text)
    assert shown.inner_text() == "trained"


def test_single_heads_can_be_chosen(look: Any) -> None:
    page = look()
    mean = page.locator(".lens-finding").inner_text()
    page.locator(".lens-choice select").first.select_option("1")
    assert ", head 1" in page.locator(".lens-finding").inner_text() != mean


def test_hostile_text_stays_text(look: Any) -> None:
    page = look()
    for text in HOSTILE:
        page.locator("#text").fill(text)
        page.wait_for_function("(text) => document.body.dataset.answered === text", arg=text)
    assert page.evaluate("window.ran") is None
    assert page.locator("img, iframe, object, embed").count() == 0
    assert page.locator("script").count() == 2
    page.locator("#text").fill(HOSTILE[3])
    page.wait_for_function("(text) => document.body.dataset.answered === text", arg=HOSTILE[3])
    assert "Only the first 64 pieces" in page.locator("#status").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1280])
def test_it_fits_every_screen(look: Any, shots: Path, width: int, scheme: str) -> None:
    page = look(width, 900, scheme)
    page.wait_for_selector("[data-painted]")
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth - {root}.clientWidth") <= 0
    assert page.locator(".comet-lens").get_attribute("data-theme") == scheme
    page.screenshot(path=shots / f"playground_{width}_{scheme}.png", full_page=True)
