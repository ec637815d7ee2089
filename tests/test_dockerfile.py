"""What Dockerfile.jetson says, without a container engine; its pip line and its app run in test_device_venv.py."""

import fnmatch
import re
import shlex
from pathlib import Path

import dockerfile

ROOT = Path(__file__).parents[1]
NAMES = [name for name, _ in dockerfile.instructions()]


def arguments(wanted):
    return [rest for name, rest in dockerfile.instructions() if name == wanted]


def test_it_is_made_of_known_instructions_in_their_order():
    known = {"ARG", "FROM", "RUN", "COPY", "ENV", "VOLUME", "USER", "WORKDIR", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert set(NAMES) <= known
    assert NAMES[:2] == ["ARG", "FROM"]
    assert NAMES.count("FROM") == NAMES.count("ENTRYPOINT") == NAMES.count("HEALTHCHECK") == 1


def test_the_base_is_jetpack_six_and_can_be_another():
    assert arguments("ARG") == ["BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0"]
    assert arguments("FROM") == ["${BASE}"]


def test_every_copied_file_exists_and_reaches_the_build():
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for rest in arguments("COPY"):
        *sources, target = shlex.split(rest)
        assert target.startswith("/")
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(source, name) or source.startswith(f"{name}/") for name in kept), source


def test_it_installs_by_constraints_and_never_tensorrt_or_torch():
    line = shlex.split(dockerfile.pip_line())
    assert line[0] == "/opt/edgetl/bin/pip"
    assert line[line.index("-c") + 1] == "/opt/src/constraints-jetson.txt"
    assert line[-1] == "/opt/src[cpu,jetson]"
    everything = " ".join(arguments("RUN")) + (ROOT / "constraints-jetson.txt").read_text().split("\n", 1)[1]
    assert not re.search(r"\b(torch|tensorrt|lightning)\b", everything)
    assert any("venv --system-site-packages /opt/edgetl" in rest for rest in arguments("RUN"))


def test_it_runs_as_a_user_who_alone_can_write_plans():
    (user,) = arguments("USER")
    assert user not in ("root", "0")
    made = " ".join(arguments("RUN"))
    assert re.search(rf"useradd [^&]*\b{user}\b", made)
    (folder,) = [rest.partition("=")[2] for rest in arguments("ENV") if rest.startswith("EDGETL_CACHE=")]
    assert f"install -d -m 0700 -o {user} -g {user} {folder}" in made
    assert arguments("VOLUME") == [folder]
    assert NAMES.index("USER") > max(i for i, name in enumerate(NAMES) if name in ("RUN", "COPY"))


def test_its_health_is_what_doctor_says_and_its_app_is_the_example():
    (health,) = arguments("HEALTHCHECK")
    assert health.endswith('CMD ["/opt/edgetl/bin/edgetl", "doctor", "--check"]')
    assert arguments("ENTRYPOINT") == ['["/opt/edgetl/bin/python", "device_app.py"]']
    assert any(rest.split() == ["examples/device_app.py", "/app/device_app.py"] for rest in arguments("COPY"))


def test_lines_are_joined_and_comments_left_out():
    assert dockerfile.instructions("# a\nRUN a \\\n    && b\n\n  # c\nUSER x\n") == [("RUN", "a && b"), ("USER", "x")]
