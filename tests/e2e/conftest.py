"""What several end-to-end tests share: one Docker engine for the session, of the tests' own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

from lab.backends import docker_engine
from tests.e2e.isolated import ROOT

START_S = 180.0


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The path of its socket, DOCKER_HOST set to it; the test is skipped with the reason where none can run."""
    if os.geteuid() != 0:
        pytest.skip("a Docker engine of the tests' own needs root")
    directory = tmp_path_factory.mktemp("engine")
    socket = directory / "docker.sock"
    with (directory / "said").open("w+") as said:
        process = subprocess.Popen([ROOT / ".ci/docker", directory], stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + START_S
            while docker_engine.lack(str(socket)) is not None:
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    pytest.skip(f"no Docker engine can run here: {said.read().strip()[-300:] or 'it never answered'}")
                time.sleep(0.05)  # its socket gives no event before it is there
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("DOCKER_HOST", f"unix://{socket}")
                yield str(socket)
        finally:
            process.terminate()
            process.wait(90)
            shutil.rmtree(directory / "data", ignore_errors=True)
            shutil.rmtree(directory / "exec", ignore_errors=True)


@pytest.fixture(scope="session")
def own_objects(engine: str) -> Iterator[dict[str, str]]:
    """A container, a network and an image of the user's own in that engine: ids by kind."""
    import docker

    from lab.backends.docker_specs import base_image, machine_links

    client = docker.DockerClient(base_url=f"unix://{engine}")
    client.api.import_image_from_data(base_image(machine_links()), repository="mine", tag="1")
    image = client.images.get("mine:1")
    network = client.networks.create("mine", labels={"labctl.run": ""})
    container = client.containers.run("mine:1", ["/usr/bin/sleep", "3600"], name="mine", network="mine", detach=True,
                                      volumes={"/usr": {"bind": "/usr", "mode": "ro"}})
    yield {"container": container.id, "network": network.id, "image": image.id}
    container.remove(force=True)
    network.remove()
    client.images.remove("mine:1", force=True)
    client.close()
