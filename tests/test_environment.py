"""The files around the code agree: versions, set-up, Makefile, and the figures in README.md."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import yaml
from notebook_helpers import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from comet_lib import checks
from comet_lib.report import report_text

sys.path.insert(0, str(ROOT / "tools"))

import torch_index

# conda's name -> pip's name, where they differ
CONDA_TO_PIP = {"pytorch": "torch", "pytorch-cpu": "torch", "matplotlib-base": "matplotlib"}
# the name in `import` -> pip's name, where they differ
IMPORT_TO_PIP = {"sklearn": "scikit-learn", "yaml": "pyyaml", "huggingface_hub": "huggingface-hub"}
# conda's own tools, which are not dependencies of ours
NOT_OURS = {"python", "pip"}
# which groups of pyproject.toml each environment holds, and what it may leave out of them;
# the extra "site" is only for `make site`
ENVIRONMENTS: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "environment.yml": (("runtime", "notebooks", "dev", "export"), set()),
    # Binder brings its own JupyterLab
    "binder/environment.yml": (("runtime", "notebooks", "export"), {"jupyterlab"}),
}

Specs = dict[str, SpecifierSet]


def parse_project(text: str) -> tuple[SpecifierSet, dict[str, Specs]]:
    """requires-python, and for each group ("runtime" and the extras) its packages."""
    project = tomllib.loads(text)["project"]
    lists = {"runtime": project["dependencies"], **project["optional-dependencies"]}
    groups = {
        str(group): {str(canonicalize_name(r.name)): r.specifier for r in map(Requirement, lines)}
        for group, lines in lists.items()
    }
    return SpecifierSet(project["requires-python"]), groups


def parse_constraints(text: str) -> Specs:
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, filter(None, lines))}


def parse_conda(text: str) -> Specs:
    """An environment file's packages under their pip names; conda's `=3.12` is `==3.12.*`."""
    specs: Specs = {}
    for entry in yaml.safe_load(text)["dependencies"]:
        if isinstance(entry, dict):
            wanted = [(line, False) for line in entry["pip"]]
        else:
            wanted = [(entry, True)]
        for line, is_conda in wanted:
            match = re.fullmatch(r"([A-Za-z0-9_.-]+)\s*(.*)", line.strip())
            assert match is not None, f"cannot read {line!r}"
            name, spec = match.groups()
            if is_conda:
                name = CONDA_TO_PIP.get(name, name)
                spec = re.sub(r"^=([0-9.]+)$", r"==\1.*", spec)
            specs[canonicalize_name(name)] = SpecifierSet(spec)
    return specs


def floor(spec: SpecifierSet) -> Version | None:
    """The lowest version that `spec` names with >=, ~= or ==; None where it names none."""
    versions = [
        Version(s.version.removesuffix(".*")) for s in spec if s.operator in (">=", "~=", "==")
    ]
    return max(versions, default=None)


def disagreements(
    pyproject: str,
    constraints: str,
    environments: dict[str, str],
    contents: dict[str, tuple[tuple[str, ...], set[str]]] = ENVIRONMENTS,
) -> list[str]:
    """Every way in which the files (their texts) contradict each other, one sentence each."""
    requires_python, groups = parse_project(pyproject)
    wanted: Specs = {}
    found: list[str] = []
    for group, specs in groups.items():
        for name, spec in specs.items():
            if wanted.setdefault(name, spec) != spec:
                found.append(f"pyproject.toml: {name} has two specifiers, one in {group}")
            if floor(spec) is None:
                found.append(f"pyproject.toml: {name} in {group} has no floor")

    pins = parse_constraints(constraints)
    for name in sorted(wanted.keys() - pins.keys()):
        found.append(f"constraints.txt: {name} is not pinned")
    for name in sorted(pins.keys() - wanted.keys()):
        found.append(f"constraints.txt: {name} is not in pyproject.toml")
    for name in sorted(pins.keys() & wanted.keys()):
        if [s.operator for s in pins[name]] != ["=="]:
            found.append(f"constraints.txt: {name}{pins[name]} is no exact pin")
        elif not wanted[name].contains(str(floor(pins[name]))):
            found.append(f"constraints.txt: {name}{pins[name]} is outside {wanted[name]}")

    for file, text in environments.items():
        held, left_out = contents[file]
        expected = {name for group in held for name in groups[group]} - left_out
        conda = parse_conda(text)
        python = floor(conda.get("python", SpecifierSet()))
        if python is None:
            found.append(f"{file}: Python is not pinned")
        elif python not in requires_python:
            found.append(f"{file}: Python {python} is outside {requires_python}")
        ours = conda.keys() - NOT_OURS
        for name in sorted(expected - ours):
            found.append(f"{file}: {name} is missing")
        for name in sorted(ours - expected):
            found.append(f"{file}: {name} is not wanted here by pyproject.toml")
        for name in sorted(expected & ours):
            low, needed = floor(conda[name]), floor(wanted[name])
            if low is None or (needed is not None and low < needed):
                found.append(f"{file}: {name}{conda[name]} admits less than {wanted[name]}")
            elif name in pins and not conda[name].contains(str(floor(pins[name]))):
                found.append(f"{file}: {name}{conda[name]} shuts out the tested {pins[name]}")
    return found


def above_colab(pyproject: str, versions: str) -> list[str]:
    """Every package that pyproject.toml wants newer than Colab has it, one sentence each."""
    _, groups = parse_project(pyproject)
    wanted = {name: spec for specs in groups.values() for name, spec in specs.items()}
    found = []
    for name, spec in parse_constraints(versions).items():
        if [s.operator for s in spec] != ["=="]:
            found.append(f"colab/versions.txt: {name}{spec} is no exact version")
        elif not wanted.get(name, SpecifierSet()).contains(str(floor(spec))):
            found.append(f"pyproject.toml: {name}{wanted[name]}, and Colab has {floor(spec)}")
    return found


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def settings() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))


def test_the_files_agree() -> None:
    texts = {file: read(file) for file in ENVIRONMENTS}
    assert disagreements(read("pyproject.toml"), read("constraints.txt"), texts) == []


SMALL_PROJECT = """
[project]
requires-python = ">=3.11"
dependencies = ["torch>=2.11", "numpy>=2.1"]
[project.optional-dependencies]
notebooks = ["jupyterlab>=4.2"]
"""
SMALL_CONSTRAINTS = "torch==2.13.0  # a note\nnumpy==2.4.6\njupyterlab==4.6.6\n"
SMALL_CONDA = "dependencies: [python=3.12, pip, pytorch>=2.11, numpy>=2.1, jupyterlab>=4.2]"


def small(
    project: str = SMALL_PROJECT, pins: str = SMALL_CONSTRAINTS, conda: str = SMALL_CONDA
) -> list[str]:
    contents: dict[str, tuple[tuple[str, ...], set[str]]] = {"e": (("runtime", "notebooks"), set())}
    return disagreements(project, pins, {"e": conda}, contents)


def test_agreeing_files_have_no_disagreement() -> None:
    assert small() == []
    pip_part = "dependencies: [python=3.12, pytorch>=2.11, numpy>=2.1, {pip: [jupyterlab>=4.2]}]"
    assert small(conda=pip_part) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pins": SMALL_CONSTRAINTS.replace("numpy==2.4.6", "")}, "numpy is not pinned"),
        ({"pins": SMALL_CONSTRAINTS + "pandas==3.1.1"}, "pandas is not in pyproject.toml"),
        ({"pins": SMALL_CONSTRAINTS.replace("2.13.0", "2.10.0")}, "torch==2.10.0 is outside"),
        ({"pins": SMALL_CONSTRAINTS.replace("==2.4", ">=2.4")}, "numpy>=2.4.6 is no exact pin"),
        ({"conda": SMALL_CONDA.replace("pytorch>", "pytorch-gpu>")}, "torch is missing"),
        ({"conda": SMALL_CONDA.replace("pip,", "pip, scipy,")}, "scipy is not wanted"),
        ({"conda": SMALL_CONDA.replace("numpy>=2.1", "numpy>=1.26")}, "numpy>=1.26 admits less"),
        ({"conda": SMALL_CONDA.replace("numpy>=2.1", "numpy")}, "numpy admits less"),
        ({"conda": SMALL_CONDA.replace("numpy>=2.1", "numpy>=2.5")}, "shuts out the tested"),
        ({"conda": SMALL_CONDA.replace("3.12", "3.10")}, "Python 3.10 is outside >=3.11"),
        ({"conda": SMALL_CONDA.replace("python=3.12,", "")}, "Python is not pinned"),
        ({"project": SMALL_PROJECT.replace("numpy>=2.1", "numpy")}, "numpy in runtime has no"),
        ({"project": SMALL_PROJECT + 'dev = ["numpy>=2.2"]'}, "numpy has two specifiers"),
    ],
)
def test_each_disagreement_is_found(change: dict[str, str], message: str) -> None:
    found = small(**change)
    assert any(message in sentence for sentence in found), found


def test_no_floor_is_above_what_colab_has() -> None:
    versions = read("colab/versions.txt")
    assert above_colab(read("pyproject.toml"), versions) == []
    assert {"torch", "transformers", "ipywidgets"} < parse_constraints(versions).keys()


def test_a_floor_above_colab_is_found() -> None:
    assert above_colab(SMALL_PROJECT, "torch==2.11.0\nipython==7.34.0\n") == []
    assert above_colab(SMALL_PROJECT, "torch==2.10.0\n") == [
        "pyproject.toml: torch>=2.11, and Colab has 2.10.0"
    ]
    assert above_colab(SMALL_PROJECT, "numpy>=2.1\n") == [
        "colab/versions.txt: numpy>=2.1 is no exact version"
    ]


def imported_packages(source: str) -> set[str]:
    """pip names of what a module's text imports, the standard library left out."""
    tops: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            tops |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            tops.add(node.module.split(".")[0])
    ours = set(sys.stdlib_module_names) | {"comet_lib"}
    return {canonicalize_name(IMPORT_TO_PIP.get(top, top)) for top in tops - ours}


def test_imported_packages_reads_every_form() -> None:
    source = "import os\nimport numpy.linalg as la\ndef f():\n    from sklearn.svm import SVC\n"
    assert imported_packages(source + "from . import data\n") == {"numpy", "scikit-learn"}


def test_the_library_imports_only_what_it_declares() -> None:
    _, groups = parse_project(read("pyproject.toml"))
    declared = {name for group in ("runtime", "notebooks", "export") for name in groups[group]}
    undeclared = {
        str(path.relative_to(ROOT)): missing
        for path in sorted((ROOT / "comet_lib").rglob("*.py"))
        if (missing := imported_packages(path.read_text(encoding="utf-8")) - declared)
    }
    assert undeclared == {}


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CITATION.cff",
        "docs/setup.md",
        "docs/for-researchers.md",
        "comet_lib/lens/export.py",
    ],
)
def test_the_repository_address_is_one_setting(path: str) -> None:
    address = settings()["tool"]["comet"]["repository"]
    assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address)
    assert not address.endswith(".git")
    text = read(path)
    assert address in text, f"{path} does not name [tool.comet] repository of pyproject.toml"
    owner = re.escape(address.rsplit("/", 2)[1])
    others = set(re.findall(rf"https://github\.com/{owner}/[\w.-]*\w", text)) - {
        address,
        address + ".git",
    }
    assert others == set()


def test_citation_and_package_say_the_same() -> None:
    project = settings()["project"]
    citation = yaml.safe_load(read("CITATION.cff"))
    assert str(citation["version"]) == project["version"]
    assert citation["license"] == project["license"]
    assert citation["repository-code"] == settings()["tool"]["comet"]["repository"]


@pytest.mark.parametrize("path", ["binder/postBuild", ".ci/run"])
def test_scripts_can_be_run(path: str) -> None:
    assert read(path).startswith("#!")
    if os.name == "posix":
        assert os.access(ROOT / path, os.X_OK), f"{path} is not executable: chmod +x {path}"


def test_the_floors_that_are_tested_are_the_projects() -> None:
    _, groups = parse_project(read("pyproject.toml"))
    wanted = {name: floor(spec) for specs in groups.values() for name, spec in specs.items()}
    found = re.search(r"^FLOORS *:= *(.+)$", read("Makefile"), re.MULTILINE)
    assert found is not None
    tested = [Requirement(one) for one in found[1].split()]
    assert {"ipywidgets", "anywidget"} <= {one.name for one in tested}
    for one in tested:
        if canonicalize_name(one.name) in wanted:
            assert floor(one.specifier) == wanted[canonicalize_name(one.name)], one


def test_binder_installs_the_library_without_dependencies() -> None:
    installs = [line for line in read("binder/postBuild").splitlines() if "pip install" in line]
    assert installs and all("--no-deps" in line for line in installs)


def test_binder_takes_what_the_folder_binder_asks_for() -> None:
    """Binder's own tool plans the image (it builds none) from binder/, not from other files."""
    program = shutil.which("repo2docker")
    if program is None:
        pytest.skip("needs repo2docker: pip install jupyter-repo2docker")
    plan = subprocess.run(
        [program, "--no-build", "--debug", str(ROOT)], capture_output=True, text=True, timeout=120
    )
    assert plan.returncode == 0, plan.stderr
    said = plan.stdout + plan.stderr
    pinned = re.search(r"- (python=[\d.]+)", read("binder/environment.yml"))
    assert pinned and f"conda environment for {pinned[1]}" in said
    assert re.search(r"env update .*binder/environment\.yml", said)
    assert "RUN ./binder/postBuild" in said
    assert "pip install" not in said


def test_the_examples_for_researchers_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", read("docs/for-researchers.md"), re.DOTALL)
    assert len(examples) == 2
    names: dict[str, Any] = {}  # the second continues the first
    for example in examples:
        exec(compile(example, "docs/for-researchers.md", "exec"), names)
    gradients = [p.grad for p in names["student"].parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)
    assert "<script" in (tmp_path / "lens.html").read_text(encoding="utf-8")


# --- README.md and docs/ -------------------------------------------------------------------


def table(text: str, header: str) -> list[list[str]]:
    """The cells of the Markdown table below the line that begins with ``header``."""
    lines = text[text.index(f"\n{header}") + 1 :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def reference() -> dict[str, Any]:
    report: dict[str, Any] = json.loads(read("comet_lib/assets/reference_report.json"))
    return report


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 150


def test_the_results_in_the_texts_are_the_reference_report() -> None:
    rows = {row["name"]: row for row in [*reference()["rows"], *reference()["paper"]]}
    names = ["student", "student_no_distillation", "teacher", "soft_targets"]
    names += ["tfidf", "tfidf_both_forms", "AfroXLMR-Comet (paper)"]
    expected = []
    for row in map(rows.__getitem__, names):
        interval = "{:.1f} to {:.1f}".format(*row["ci95"]["mean"]) if "ci95" in row else ""
        expected.append([f"{row['parameters']:,}", f"{row['weighted_f1']['mean']:.1f}", interval])
    assert [cells[1:] for cells in table(read("README.md"), "| model |")] == expected
    lines = [line for line in report_text(reference()).splitlines() if line.startswith("| ")]
    assert len(lines) > len(rows) and set(lines) <= set(read("docs/results.md").splitlines())


def test_the_readme_counts_what_the_course_has() -> None:
    assert f"**{len(checks.EXERCISES)} exercises " in read("README.md")
    measured = table(read("docs/instructors.md"), "| notebook |")
    expected = [[str(max(1, round(float(run)))), minutes] for _, run, _, _, minutes in measured]
    listed = table(read("README.md"), "| notebook |")
    assert [cells[2:] for cells in listed] == expected
    links = [re.search(r"\((notebooks/.*)\)", cells[0]) for cells in listed]
    notebooks = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert [link and link[1] for link in links] == [f"notebooks/{name}" for name in notebooks]


# --- Makefile and tools/torch_index.py -----------------------------------------------------

CPU = f"--extra-index-url {torch_index.CPU_WHEELS}"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Linux, no NVIDIA GPU, pip as it comes, and an index that answers."""
    monkeypatch.setattr(torch_index.platform, "system", lambda: "Linux")
    monkeypatch.setattr(torch_index.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch_index, "pip_config", lambda: "global.timeout='60'\n:env:.cert='/c'")
    monkeypatch.setattr(torch_index, "answers", lambda address: True)
    return monkeypatch


def test_linux_without_a_gpu_gets_a_cpu_torch(bare: pytest.MonkeyPatch) -> None:
    options, reason = torch_index.options(["--quiet", "--pre"], "")
    assert options == CPU and "No NVIDIA GPU" in reason


def test_a_gpu_gets_pips_default(bare: pytest.MonkeyPatch) -> None:
    bare.setattr(torch_index.shutil, "which", {"nvidia-smi": "/bin/nvidia-smi"}.get)
    assert torch_index.options([], "") == ("", "")


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_other_systems_get_pips_default(bare: pytest.MonkeyPatch, system: str) -> None:
    bare.setattr(torch_index.platform, "system", lambda: system)
    assert torch_index.options([], "") == ("", "")


@pytest.mark.parametrize(
    "setting",
    [
        "global.index-url='https://mirror.example/simple'",
        "user.extra-index-url='https://mirror.example/simple'",
        "install.find-links='/wheels'",
        ":env:.find-links='/wheels'",
        ":env:.constraint='/c.txt'",
        ":env:.no-index='1'",
    ],
)
def test_pip_with_an_index_of_its_own_keeps_it(bare: pytest.MonkeyPatch, setting: str) -> None:
    bare.setattr(torch_index, "pip_config", lambda: f"global.timeout='60'\n{setting}\n")
    options, reason = torch_index.options([], "")
    assert options == "" and "of its own" in reason


@pytest.mark.parametrize(
    "arguments",
    [["--index-url=https://x"], ["-q", "-i", "https://x"], ["-qf", "/w"], ["-c", "c.txt"]],
)
def test_so_does_pip_with_such_arguments(bare: pytest.MonkeyPatch, arguments: list[str]) -> None:
    assert torch_index.options(arguments, "")[0] == ""


def test_an_index_that_does_not_answer_is_left_out(bare: pytest.MonkeyPatch) -> None:
    bare.setattr(torch_index, "answers", lambda address: False)
    options, reason = torch_index.options([], "")
    assert options == "" and "does not answer" in reason


def test_a_given_index_overrides_everything(bare: pytest.MonkeyPatch) -> None:
    bare.setattr(torch_index.shutil, "which", lambda name: "/bin/nvidia-smi")
    bare.setattr(torch_index, "pip_config", lambda: "global.index-url='https://mirror.example'")
    assert torch_index.options([], "https://x.example") == ("--index-url https://x.example", "")


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), TimeoutError("slow"), ValueError("bad address")]
)
def test_no_answer_is_no_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch_index.urllib.request, "urlopen", fail)
    assert not torch_index.answers("https://x.example")


def test_pips_settings_are_read_from_its_files_and_the_environment(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("[global]\nconstraint = /c.txt\n")
    environment = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_FIND_LINKS": "/wheels"}
    done = subprocess.run(
        [sys.executable, "-c", "import torch_index; print(torch_index.pip_config())"],
        cwd=ROOT / "tools",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "constraint='/c.txt'" in done.stdout and "find-links='/wheels'" in done.stdout


def planned(target: str, venv: Path, *stamps: str) -> str:
    """What make would run for ``target`` if ``venv`` held these stamps."""
    venv.mkdir(exist_ok=True)
    for stamp in stamps:
        (venv / f".ready-{stamp}").touch()
    command = ["make", "-n", target, f"VENV={venv}"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("target", "stamp"),
    [("lab", "lab"), ("distill", "lab"), ("lab", "test"), ("distill", "test"), ("test", "test")],
)
def test_what_is_installed_is_not_installed_again(target: str, stamp: str, tmp_path: Path) -> None:
    first = planned(target, tmp_path / "new")
    assert "torch_index.py" in first and first.count(" install ") >= 2
    assert " install " not in planned(target, tmp_path / "v", "venv", "torch", stamp)


def test_tests_reach_no_network() -> None:
    # 192.0.2.1 is reserved for documentation (RFC 5737): nobody answers there
    with pytest.raises(RuntimeError, match=r"192\.0\.2\.1.*no network"):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)
    with pytest.raises(RuntimeError, match="no network"):
        socket.getaddrinfo("example.org", 443)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        pytest.raises(RuntimeError, match="no network"),
    ):
        datagrams.sendto(b"", ("192.0.2.1", 80))


@pytest.mark.parametrize("ask", ["create_connection(('192.0.2.1', 80))", "getaddrinfo('a.b', 1)"])
def test_what_a_test_starts_reaches_no_network_either(ask: str) -> None:
    code = f"import socket; socket.{ask}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "NetworkBlocked" in done.stderr


def test_make_gives_the_notebooks_no_network() -> None:
    kernels = [line for line in read("Makefile").splitlines() if 'COMET_HOME="$$home"' in line]
    assert len(kernels) == 2 and all("$(OFFLINE)" in line for line in kernels)


def test_tests_reach_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_tests_run_on_the_tiny_profile_in_an_empty_home(comet_home: Path) -> None:
    assert os.environ["COMET_PROFILE"] == "tiny"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["COMET_HOME"] == str(comet_home)
    assert "COMET_DATA" not in os.environ
    assert list(comet_home.iterdir()) == []
