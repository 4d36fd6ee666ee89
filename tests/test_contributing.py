"""What contributors work with agrees with itself: versions, hooks, forms, the list of what is type-checked."""

import pathlib
import re
import tomllib

import yaml

import bionets_jax as bn

ROOT = pathlib.Path(__file__).parent.parent


def text(name):
  return (ROOT / name).read_text(encoding="utf-8")


def test_hooks_have_the_versions_of_the_tools():
  pins = dict(re.findall(r"^([\w-]+)==(\S+)", text("requirements-dev.txt"), re.MULTILINE))
  hooks = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"][0]["hooks"]
  assert len({hook["id"] for hook in hooks}) == len(hooks) >= 8
  for hook in hooks:
    needed = dict(one.split("==") for one in hook.get("additional_dependencies", ()))
    assert needed or hook["language"] == "system"  # pinned, or out of the project's own environment
    for name in needed.keys() & pins.keys():
      assert needed[name] == pins[name], hook["id"]
    if hook["language"] == "system":
      assert f"\n{hook['entry'].removeprefix('make ')}:" in text("Makefile")


def test_the_citation_is_of_this_version_and_of_the_three_papers():
  cited = yaml.safe_load(text("CITATION.cff"))
  assert (cited["cff-version"], cited["version"], cited["license"]) == ("1.2.0", bn.__version__, "Apache-2.0")
  assert bn.__version__ in text("CHANGELOG.md")
  assert len(cited["references"]) == 3
  # Each is named among the README's sources too.
  sources = text("README.md").lower()
  for reference in cited["references"]:
    assert reference["title"].lower() in sources and all(a["family-names"] for a in reference["authors"])


def test_forms_of_issues_are_whole():
  forms = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
           for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"}
  assert forms.keys() == {"bug", "question", "reproduction"}
  for form in forms.values():
    assert form["name"] and form["description"]
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in fields}) == len(fields)
    assert any(part.get("validations", {}).get("required") for part in fields)
  assert "bionets_jax.selfcheck" in str(forms["bug"]) and "bionets_jax.selfcheck" in str(forms["reproduction"])


def test_what_is_public_is_type_checked():
  checked = tomllib.loads(text("pyproject.toml"))["tool"]["mypy"]
  assert all((ROOT / name).exists() for name in (*checked["files"], *checked["exclude"]))
  for name in bn.__all__:
    module = bn._LATE[name].replace(".", "/")
    assert {module, f"{module}.py"} & set(checked["files"]), name
  assert (ROOT / "bionets_jax" / "py.typed").exists()
  assert not {"ignore_errors", "disable_error_code"} & checked.keys()
  excused = [line for path in (ROOT / "bionets_jax").rglob("*.py") for line in path.read_text().splitlines()
             if "type: ignore" in line]
  assert len(excused) < 20 and all(re.search(r"type: ignore\[[\w-]+\]", line) for line in excused)
