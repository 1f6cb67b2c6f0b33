"""The files of recipes/deploy: whoever reads them accepts them, and their numbers fit the server's and each other's."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest

if sys.version_info < (3, 11):
    pytest.skip("the server needs Python 3.11", allow_module_level=True)
pytest.importorskip("fastapi")

from openblip.cli.commands import Commands
from openblip.serve.bodies import SPARE
from openblip.serve.limits import MEGABYTE, Limits

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "recipes" / "deploy"
LIMITS = Limits()
DRAIN = 2 * LIMITS.request_seconds + 5
"""Seconds that the server takes to end, at most: for its last answers, for slow readers of them, and its threads."""


def text_of(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def read_serve(words: list[str]) -> dict[str, Any]:
    """The options of an `openblip serve`, read as the program does."""
    assert Path(words[0]).name == "openblip" and words[1] == "serve"
    with Commands()["serve"].make_context("serve", words[2:]) as context:
        return dict(context.params)


PORT = read_serve(["openblip", "serve"])["port"]


def dockerfile() -> list[tuple[str, str]]:
    """Instructions with what stands behind them."""
    whole = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text_of("Dockerfile"), flags=re.MULTILINE))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in whole.splitlines() if line)]


def entry_point() -> list[str]:
    (entry,) = [json.loads(rest) for name, rest in dockerfile() if name == "ENTRYPOINT"]
    assert entry[:2] == ["tini", "--"]
    return list(entry[2:])


def seconds(text: str) -> float:
    assert re.fullmatch(r"\d+s?", text), text
    return float(text.removesuffix("s"))


def directives(name: str) -> list[list[str]]:
    """The words of every `name ...;` of nginx.conf."""
    bare = re.sub(r"^\s*#.*$", "", text_of("nginx.conf"), flags=re.MULTILINE)
    return [shlex.split(rest) for rest in re.findall(rf"\b{name}\s+([^;{{}}]+);", bare)]


def directive(name: str) -> str:
    ((word,),) = directives(name)
    return word


def unit() -> ConfigParser:
    parser = ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text_of("openblip.service"))
    return parser


def manifests() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return {one["kind"]: one for one in yaml.safe_load_all(text_of("kubernetes.yaml"))}


def test_the_image_serves_as_nobody() -> None:
    steps = dockerfile()
    (command,) = [json.loads(rest) for name, rest in steps if name == "CMD"]
    (user,) = [rest for name, rest in steps if name == "USER"]
    (port,) = [rest for name, rest in steps if name == "EXPOSE"]
    (health,) = [rest for name, rest in steps if name == "HEALTHCHECK"]
    options = read_serve([*entry_point(), *command])
    assert (options["host"], options["port"], str(options["api_key_file"])[:13]) == ("0.0.0.0", PORT, "/run/secrets/")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user) and int(port) == PORT
    assert f"http://127.0.0.1:{PORT}/health" in health
    assert [name for name, _ in steps].index("USER") > max(i for i, (name, _) in enumerate(steps) if name == "RUN")


def test_the_image_is_built_from_what_is_there() -> None:
    copied = [word for name, rest in dockerfile() if name == "COPY" for word in rest.split()[:-1]]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"]
    assert set(copied) <= set(kept) and all((ROOT / place).exists() for place in kept)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (files,) = re.findall(r"^license-files = (\[.*\])$", project, re.MULTILINE)
    needed = ["README.md", "src", *ast.literal_eval(files)]
    assert {place.partition("/")[0] for place in needed} <= set(kept)


def test_the_unit_stops_when_the_server_has_ended() -> None:
    service = unit()["Service"]
    options = read_serve(shlex.split(service["ExecStart"]))
    assert options["port"] == PORT
    credential, _, _ = service["LoadCredential"].partition(":")
    assert str(options["api_key_file"]) == f"%d/{credential}"
    assert float(service["TimeoutStopSec"]) >= DRAIN
    assert service["DynamicUser"] == "yes" and service["ProtectSystem"] == "strict"
    assert memory_of(service["MemoryMax"] + "i") > 2 * LIMITS.bodies_mb * MEGABYTE


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    # The program is where the reader installs it.
    text = text_of("openblip.service").replace("/opt/openblip/bin/openblip", sys.executable)
    (tmp_path / "openblip.service").write_text(text, encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "openblip.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")


def memory_of(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([MG]i)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 2**20, "Gi": 2**30}[unit]


def test_kubernetes_knows_every_key() -> None:
    pytest.importorskip("lightkube")
    from lightkube.models.apps_v1 import Deployment
    from lightkube.models.autoscaling_v2 import HorizontalPodAutoscaler
    from lightkube.models.core_v1 import Service
    from lightkube.models.policy_v1 import PodDisruptionBudget

    kinds: list[Any] = [Deployment, Service, PodDisruptionBudget, HorizontalPodAutoscaler]
    found = manifests()
    assert set(found) == {kind.__name__ for kind in kinds}
    for kind in kinds:
        given = found[kind.__name__]
        # What is missing, or of a wrong type, is raised; what is unknown is left out.
        assert kind.from_dict(given).to_dict() == given


def test_pods_are_given_the_time_to_end() -> None:
    found = manifests()
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = read_serve([*entry_point(), *container["args"]])
    (volume,) = pod["volumes"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"] and str(options["api_key_file"].parent) == mount["mountPath"]
    (slept,) = [float(word) for word in container["lifecycle"]["preStop"]["exec"]["command"][1:]]
    ready = container["readinessProbe"]
    assert slept >= ready["periodSeconds"]
    assert pod["terminationGracePeriodSeconds"] >= slept + DRAIN
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    (port,) = container["ports"]
    (service_port,) = found["Service"]["spec"]["ports"]
    assert (port["containerPort"], service_port["targetPort"]) == (PORT, port["name"])
    limits = container["resources"]["limits"]
    assert options["threads"] == int(limits["cpu"])
    assert memory_of(limits["memory"]) > 2 * LIMITS.bodies_mb * MEGABYTE
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
    ):
        assert selector == labels
    assert f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" in text_of("Dockerfile")


def test_nginx_waits_longer_than_the_server() -> None:
    assert int(directive("client_max_body_size").removesuffix("m")) * 2**20 >= LIMITS.batch_mb * MEGABYTE + SPARE
    assert LIMITS.batch_mb >= max(LIMITS.json_mb, LIMITS.picture_mb)
    assert seconds(directive("proxy_read_timeout")) > LIMITS.request_seconds
    assert seconds(directive("proxy_send_timeout")) >= LIMITS.body_seconds
    assert seconds(directive("client_body_timeout")) == LIMITS.body_seconds
    assert seconds(directive("client_header_timeout")) == LIMITS.header_seconds
    assert seconds(directive("keepalive_timeout")) < LIMITS.idle_seconds
    assert seconds(directive("proxy_next_upstream_timeout")) < seconds(directive("proxy_read_timeout"))
    assert directive("proxy_buffering") == "off"
    servers = [words[0] for words in directives("server") if ":" in words[0]]
    assert servers[0] == f"127.0.0.1:{PORT}"
    for answer in re.findall(r"return \d+ '(.*)';", text_of("nginx.conf")):
        assert set(json.loads(answer)) == {"error", "request_id"}
        assert set(json.loads(answer)["error"]) == {"message", "type", "code", "param"}


def test_ray_is_given_what_the_recipe_takes() -> None:
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load(text_of("ray_serve.yaml"))
    tree = ast.parse(text_of("ray_serve.py"))
    (settings,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings"]
    names = [node.target.id for node in settings.body if isinstance(node, ast.AnnAssign)]  # type: ignore[union-attr]
    (application,) = config["applications"]
    assert set(application["args"]) <= set(names)
    module, _, function = application["import_path"].partition(":")
    assert (DEPLOY / f"{module}.py").is_file()
    assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert config["http_options"]["port"] == PORT
    numbers = {
        keyword.arg: ast.literal_eval(keyword.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if isinstance(keyword.value, ast.Constant)
    }
    assert numbers["graceful_shutdown_timeout_s"] >= DRAIN


def docker_runs() -> list[list[str]]:
    """What is given to the image by each `docker run` of the page."""
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [shlex.split(line) for line in re.findall(r"^docker run .*$", page, re.MULTILINE)]
    return [words[words.index("openblip") + 1 :] for words in lines]


def test_what_the_page_gives_to_the_image_is_read() -> None:
    runs = docker_runs()
    assert len(runs) >= 2
    for words in runs:
        assert read_serve([*entry_point(), *words])["host"] == "0.0.0.0"


def test_the_page_shows_the_numbers() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    for name, value in (
        ("terminationGracePeriodSeconds", pod["terminationGracePeriodSeconds"]),
        ("TimeoutStopSec", unit()["Service"]["TimeoutStopSec"]),
        ("proxy_read_timeout", directive("proxy_read_timeout")),
        ("client_max_body_size", directive("client_max_body_size")),
        ("keepalive_timeout", directive("keepalive_timeout")),
        ("request_seconds", f"{LIMITS.request_seconds:g}"),
        ("batch_mb", f"{LIMITS.batch_mb:g}"),
        ("idle_seconds", f"{LIMITS.idle_seconds:g}"),
    ):
        assert f"`{name}` | {value} |" in page, name
