"""Images of real programs for the tests, put together from Debian's own packages; nothing is pulled.

A package is downloaded by apt-get and unpacked, never installed: nothing of it runs on the machine.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lab.backends.docker_specs import _GROUPS, _USERS

_TLS = ("libc6", "libssl3", "zlib1g")
PACKAGES: dict[str, tuple[str, ...]] = {
    "labctl-test/nginx": ("nginx", "nginx-common", "libpcre2-8-0", "libcrypt1", *_TLS),
    "labctl-test/redis": ("redis-server", "redis-tools", "libatomic1", "libgcc-s1", "liblzf1", "libjemalloc2",
                          "libstdc++6", "libsystemd0", "libhiredis0.14", "liblua5.1-0", "lua-cjson", "lua-bitop",
                          "libcap2", "liblz4-1", "liblzma5", "libzstd1", "libgcrypt20", "libgpg-error0", *_TLS),
    "labctl-test/memcached": ("memcached", "libevent-2.1-7", "libsasl2-2", "libdb5.3", *_TLS),
    "labctl-test/api": ("busybox-static",),
    "labctl-test/worker": ("busybox-static",),
}
NGINX = """daemon off;
pid /tmp/nginx.pid;
error_log stderr;
events {}
http {
  access_log off;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  server { listen 80; listen [::]:80; location / { proxy_pass http://api:8000; } }
}
"""
OWN_FILES = {"labctl-test/nginx": {"etc/shop.conf": NGINX}, "labctl-test/api": {"www/index.html": "the shop\n"}}


def make(client: Any, directory: Path) -> None:
    """Have every image in the engine of `client`; skips the test where apt gives no packages."""
    wanted = sorted({package for packages in PACKAGES.values() for package in packages})
    directory.chmod(0o755)
    done = subprocess.run(["apt-get", "download", "-qq", *wanted], cwd=directory, capture_output=True, text=True,
                          check=False)
    if done.returncode:
        pytest.skip(f"apt-get downloads no packages here: {done.stderr.strip().splitlines()[-1:]}")
    archives = {path.name.partition("_")[0]: path for path in directory.glob("*.deb")}
    for image, packages in PACKAGES.items():
        root = directory / image.rpartition("/")[2]
        for package in packages:
            subprocess.run(["dpkg-deb", "-x", archives[package], root], check=True)
        client.api.import_image_from_data(_tar(root, OWN_FILES.get(image, {})), repository=image, tag="latest")


def _tar(root: Path, files: dict[str, str]) -> bytes:
    for name in ("tmp", "run", "proc", "sys", "dev", "etc", "root"):
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for name, text in {"etc/passwd": _USERS, "etc/group": _GROUPS, **files}.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(root, arcname=".", filter=lambda info: None if "/usr/share" in f"/{info.name}" else info)
    return buffer.getvalue()
