"""What `docker compose up` promises, checked in the files that it is made of.

A last test does it for real, with DOCKER_TESTS=1: it builds, trains, kills the
sidecar in mid-run, and looks for what was lost.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from telemetry.config import ServeConfig, load
from trainer.args import TrainArgs, parse_args

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
COMPOSE_FILE = ROOT / "docker-compose.yml"
IMAGES = ("telemetry", "trainer")
RUN_ID = "compose-test"
CLOSE_TIMEOUT_S = 5.0
"""Of the trainer's emitter; its module would import torch."""


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE_FILE.read_text())["services"]


def environment(service: dict[str, Any]) -> dict[str, str]:
    """A service's variables as its container sees them on a machine that sets none."""
    return {name: default_of(value) for name, value in service["environment"].items() if value}


def default_of(text: str) -> str:
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def serve_config(services: dict[str, Any]) -> ServeConfig:
    return load({}, environment(services["telemetry"]), None)


def train_args(services: dict[str, Any]) -> TrainArgs:
    trainer = services["trainer"]
    return parse_args([default_of(word) for word in trainer["command"]], environment(trainer))


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Volume -> where it is mounted."""
    return {name: target for name, target, *_ in (v.split(":") for v in service["volumes"])}


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


def dockerfile(image: str) -> str:
    return (ROOT / image / "Dockerfile").read_text()


def instructions(image: str) -> list[tuple[str, str]]:
    """(instruction, the rest) of each logical line of a Dockerfile."""
    lines = [line for line in dockerfile(image).splitlines() if not line.startswith("#")]
    logical = "\n".join(lines).replace("\\\n", " ").splitlines()
    pairs = (line.partition(" ")[::2] for line in logical if line.strip())
    return [(word, " ".join(rest.split())) for word, rest in pairs]


def gpu_override() -> str:
    """The override that the compose file shows in its comments."""
    text = COMPOSE_FILE.read_text()
    block = re.search(r"^# services:\n(#.*\n)+", text, re.MULTILINE)
    assert block is not None
    return re.sub(r"^# ?", "", block[0], flags=re.MULTILINE)


# --- the two programs and what they are told


def test_the_sidecar_understands_every_setting_it_is_given(services):
    """A TELEMETRY_ variable with a typing error would be passed over without a word."""
    names = {name for name in services["telemetry"]["environment"] if "TELEMETRY" in name}

    config = serve_config(services)

    assert names <= {f"TELEMETRY_{field.upper()}" for field in ServeConfig.__dataclass_fields__}
    assert config.data_dir == Path(mounts(services["telemetry"])["runs"])


def test_the_trainer_trains_the_tiny_model_on_the_embedded_text(services):
    """What needs no network, no account, no GPU and a few minutes."""
    args = train_args(services)

    assert (args.model_size, args.dataset) == ("tiny", "sample")
    assert args.max_steps is not None and 100 <= args.max_steps <= 1000


def test_both_meet_at_one_socket_on_a_volume_that_they_share(services):
    """The spool is there too, where a sidecar or the next trainer finds it."""
    shared = mounts(services["telemetry"]).keys() & mounts(services["trainer"]).keys()
    directories = {mounts(services[name])[volume] for name in IMAGES for volume in shared}

    config, args = serve_config(services), train_args(services)

    assert config.address == args.telemetry_endpoint
    assert {str(Path(config.address.removeprefix("ipc://")).parent)} == directories
    assert args.spool_dir is not None and str(args.spool_dir.parent) in directories


def test_the_hardware_and_the_run_name_the_same_host(services):
    """The name is fixed: a container's own changes whenever it is made anew."""
    names = {services[name]["hostname"] for name in IMAGES}

    assert len(names) == 1
    assert re.fullmatch(r"[a-z0-9-]{1,63}", default_of(names.pop()))
    assert serve_config(services).host == ""


# --- life and death


def test_the_sidecar_has_time_to_drain_before_it_is_killed(services):
    """The trainer has time for its last acknowledgements, and stops first."""
    telemetry, trainer = services["telemetry"], services["trainer"]

    assert seconds(telemetry["stop_grace_period"]) > serve_config(services).drain_grace_s + 10
    assert seconds(trainer["stop_grace_period"]) > CLOSE_TIMEOUT_S + 10
    assert "telemetry" in trainer["depends_on"]


def test_training_waits_for_no_health_of_the_sidecar(services):
    """A condition would keep the trainer from starting where the sidecar is not healthy."""
    assert services["trainer"]["depends_on"] == ["telemetry"]


def test_the_sidecar_comes_back_and_a_finished_trainer_does_not(services):
    """A trainer that restarted would train the same model again, for ever."""
    assert services["telemetry"]["restart"] == "unless-stopped"
    assert services["trainer"]["restart"] == "no"


def test_every_container_has_an_init(services):
    """It reaps what a killed sink leaves, and a process that is not pid 1 gets its signals."""
    assert all(service["init"] is True for service in services.values())


@pytest.fixture
def sidecar_answering() -> Iterator[Any]:
    """Starts a server that answers each request with one status; returns its address."""
    servers = []

    def start(status: int) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == "/readyz" else 404)
                self.end_headers()

            def log_message(self, *args: Any) -> None: ...

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (503, False)])
def test_the_health_check_is_what_readyz_says(services, sidecar_answering, status, is_healthy):
    """It needs nothing but the image's Python."""
    kind, python, *words = services["telemetry"]["healthcheck"]["test"]
    address = environment(services["telemetry"])["TELEMETRY_HTTP"]
    assert (kind, python) == ("CMD", "python") and address in words[-1]
    words[-1] = words[-1].replace(address, sidecar_answering(status))

    code = subprocess.run([sys.executable, *words], capture_output=True).returncode

    assert (code == 0) is is_healthy


# --- what may be reached, and by whom


def test_nothing_is_reachable_from_another_machine(services):
    """TensorBoard has no password."""
    ports = [port for service in services.values() for port in service.get("ports", [])]

    assert ports and all(port.startswith("127.0.0.1:") for port in ports)


def test_tensorboard_only_reads_the_runs(services):
    """It looks at the volume that the sidecar writes, with the image of the sidecar."""
    tensorboard, telemetry = services["tensorboard"], services["telemetry"]
    data = mounts(telemetry)["runs"]

    assert f"runs:{data}:ro" in tensorboard["volumes"]
    assert f"{data}/tensorboard" in tensorboard["command"]
    assert tensorboard["build"] == telemetry["build"]


def test_every_volume_that_is_used_is_declared(services):
    """A bind of a directory of this machine would have another owner than the container's user."""
    declared = yaml.safe_load(COMPOSE_FILE.read_text())["volumes"]

    used = {volume for service in services.values() for volume in mounts(service)}

    assert used == declared.keys()


def test_a_key_is_passed_on_and_written_down_nowhere(services):
    """Only the sidecar gets it, from the environment of whoever starts it."""
    given = {name: service.get("environment", {}) for name, service in services.items()}

    assert given["telemetry"]["WANDB_API_KEY"] is None
    assert not any("WANDB_API_KEY" in given[name] for name in ("trainer", "tensorboard"))
    assert not any("WANDB" in dockerfile(image) for image in IMAGES)


def test_the_mode_of_wandb_comes_from_the_environment(services):
    """One variable for the run and for the host's own; both start without an account."""
    assert "--wandb_mode=${WANDB_MODE:-offline}" in services["trainer"]["command"]
    assert services["telemetry"]["environment"]["TELEMETRY_WANDB_MODE"] == "${WANDB_MODE:-offline}"


def test_a_build_sees_only_what_its_image_needs():
    """No key, no .git, no run and no environment of this machine can get into a layer."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]

    assert rules[0] == "*"
    assert {rule for rule in rules if rule.startswith("!")} == {
        "!pyproject.toml", "!shared", "!telemetry", "!trainer",
    }  # fmt: skip


# --- images


@pytest.mark.parametrize(
    ("image", "extras", "packages"),
    [
        ("telemetry", "telemetry,wandb,query", {"shared", "telemetry"}),
        ("trainer", "trainer", {"shared", "trainer"}),
    ],
)
def test_an_image_has_its_own_requirements_and_packages_only(image, extras, packages):
    """No torch beside the sidecar, no wandb and no TensorBoard beside the trainer."""
    runs = [rest for word, rest in instructions(image) if word == "RUN"]
    copies = [rest.split()[0] for word, rest in instructions(image) if word == "COPY"]

    installed = [extra for rest in runs for extra in re.findall(r'"\.\[([\w,]+)\]"', rest)]

    assert installed == [extras]
    assert set(copies) == {"pyproject.toml", *packages}
    assert ("torch==" in " ".join(runs)) is (image == "trainer")


def test_the_torch_of_the_image_is_the_torch_of_the_project():
    """Another pin would be replaced by the requirements, in a second layer of gigabytes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pin = next(r for r in project["optional-dependencies"]["trainer"] if r.startswith("torch"))

    installs = [rest for word, rest in instructions("trainer") if word == "RUN"]

    assert any(rest.endswith(f" {pin}") for rest in installs)


def test_the_index_of_torch_can_be_chosen(services):
    """The default of PyPI brings CUDA; who has no GPU names the index without."""
    assert ("ARG", "TORCH_INDEX_URL=") in instructions("trainer")
    assert services["trainer"]["build"]["args"]["TORCH_INDEX_URL"] == "${TORCH_INDEX_URL:-}"


@pytest.mark.parametrize("image", IMAGES)
def test_requirements_are_installed_before_the_code_comes(image):
    """A change of the code must not install everything again."""
    words = instructions(image)
    code = min(i for i, pair in enumerate(words) if pair == ("COPY", "shared /app/shared"))

    installs = [i for i, (word, rest) in enumerate(words) if "pip install" in rest]

    assert installs and max(installs) < code


@pytest.mark.parametrize("image", IMAGES)
def test_a_container_is_not_root_and_gets_its_signals(image):
    """A shell between Docker and Python would keep SIGTERM to itself."""
    words = dict(instructions(image))

    assert words["USER"] == "app"
    assert json.loads(words["ENTRYPOINT"]) == ["python", "-m", image]


def test_both_users_are_one_and_own_what_is_mounted(services):
    """A new volume takes its owner from the image; the socket and the spool have two users."""
    for image in IMAGES:
        runs = " ".join(rest for word, rest in instructions(image) if word == "RUN")
        assert "--gid 10001 app" in runs and "--uid 10001 --gid app" in runs
        for target in mounts(services[image]).values():
            assert re.search(rf"install -d -o app -g app (-m 0700 )?{target}(\s|$)", runs)


# --- compose itself


def compose_command() -> list[str]:
    """`docker compose` or `docker-compose`, whichever this machine has."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            asked = subprocess.run([*command, "version"], capture_output=True, timeout=60)
            if asked.returncode == 0:
                return command
    pytest.skip("neither `docker compose` nor `docker-compose` is installed")


def test_the_gpu_lines_are_an_override_of_both_services(services):
    """They are comments: nothing else would notice a mistake in them."""
    override = yaml.safe_load(gpu_override())["services"]

    for name in IMAGES:
        (device,) = override[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert not any("deploy" in service for service in services.values())


def test_compose_takes_the_file_with_and_without_gpus(tmp_path):
    """And has nothing to warn of."""
    compose = compose_command()
    override = tmp_path / "gpu.yml"
    override.write_text(gpu_override())
    plain = ["-f", str(COMPOSE_FILE)]

    for files in (plain, [*plain, "-f", str(override)]):
        found = subprocess.run(
            [*compose, *files, "config"], capture_output=True, text=True, cwd=ROOT, timeout=60
        )

        assert found.returncode == 0, found.stderr
        assert "warn" not in found.stderr.lower()
        assert "WANDB_API_KEY: " not in found.stdout.replace("WANDB_API_KEY: null", "")


class Stack:
    """The services under a project name of their own, with a short run. Removed at the end."""

    def __init__(self, directory: Path, services: dict[str, Any]) -> None:
        words = [word for word in services["trainer"]["command"] if "max_steps" not in word]
        override = directory / "override.yml"
        command = [*words, "--max_steps=60", f"--run_id={RUN_ID}"]
        override.write_text(json.dumps({"services": {"trainer": {"command": command}}}))
        self._command = [*compose_command(), "-p", f"telemetry-test-{os.getpid()}"]
        self._command += ["-f", str(COMPOSE_FILE), "-f", str(override)]
        # Any free port; and whoever runs the tests may have an account.
        self._environ = dict(os.environ, TENSORBOARD_PORT="0", WANDB_API_KEY="", WANDB_MODE="")

    def __call__(self, *words: str, codes: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            [*self._command, *words],
            capture_output=True, text=True, cwd=ROOT, env=self._environ, timeout=1200,
        )  # fmt: skip
        assert done.returncode in codes, done.stdout + done.stderr
        return done.stdout

    def state(self, service: str) -> dict[str, Any]:
        container = self("ps", "-a", "-q", service).strip()
        asked = subprocess.run(
            ["docker", "inspect", container], capture_output=True, text=True, check=True
        )
        (found,) = json.loads(asked.stdout)
        return {**found["State"], "RestartCount": found["RestartCount"]}

    def wait_for(self, is_so: Any, what: str, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline_s, f"{what}: not in {timeout_s:.0f} s"
            time.sleep(1)


KILL_SERVE = """
import os, psutil, signal
for process in psutil.process_iter(["cmdline"]):
    if process.pid != 1 and "telemetry.guard" in (process.info["cmdline"] or []):
        os.kill(process.pid, signal.SIGKILL)
"""


@pytest.fixture
def stack(tmp_path, services) -> Iterator[Stack]:
    if os.environ.get("DOCKER_TESTS") != "1":
        pytest.skip("builds images and trains for minutes; set DOCKER_TESTS=1 to run it")
    compose = Stack(tmp_path, services)
    try:
        yield compose
    finally:
        compose("down", "-v", "--rmi", "local")


@pytest.mark.timeout(2400)
def test_a_sidecar_killed_in_mid_run_loses_nothing(stack):
    """Training goes on to its end, the sidecar comes back, and the journal is whole."""
    stack("up", "-d", "--build")
    stack.wait_for(lambda: "step 20/" in stack("logs", "trainer"), "step 20", 600)

    # 137: the container may be gone before the one who killed it.
    stack("exec", "-T", "telemetry", "python", "-c", KILL_SERVE, codes=(0, 137))

    stack.wait_for(lambda: stack.state("trainer")["Status"] == "exited", "the end", 900)
    stack.wait_for(lambda: stack.state("telemetry")["Health"]["Status"] == "healthy", "health", 90)
    address = stack("port", "tensorboard", "6006").strip()
    with urllib.request.urlopen(f"http://{address}/", timeout=30) as answer:
        assert answer.status == 200
    stack("stop")
    assert stack.state("trainer")["ExitCode"] == 0
    assert stack.state("telemetry")["ExitCode"] == 0
    assert stack.state("telemetry")["RestartCount"] == 1
    contents = stack("run", "--rm", "-T", "telemetry", "inspect", f"runs/{RUN_ID}")
    assert "missing: nothing" in contents and "damage: none" in contents
    assert contents.count("has all of it") == 2
