"""Ansible connection to an enforcement point: a host, whose `labhost init` runs the command, or a switch port."""

from __future__ import annotations

from pathlib import Path

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase

from lab.backends.switch import Switch
from lab.hosts import init_client

DOCUMENTATION = """
    name: labns
    short_description: run commands in a host of the lab
    description: Commands go over the unix socket of the host's PID 1, which accepts its own user only.
    author: labctl
    options:
      lab_socket:
        description: the socket of the host
        vars: [{name: lab_socket}]
        default: ''
      lab_port:
        description: the interface of the switch port, where the point is one
        vars: [{name: lab_port}]
        default: ''
      lab_cgroup:
        description: the control group that what is started belongs to
        vars: [{name: lab_cgroup}]
        default: ''
      lab_environment:
        description: variables that commands are told, NAME=VALUE, a line each
        vars: [{name: lab_environment}]
        default: ''
"""


class Connection(ConnectionBase):  # type: ignore[misc]
    transport = "labns"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        cgroup = self.get_option("lab_cgroup")
        if port := self.get_option("lab_port"):
            there = Switch(Path(cgroup) if cgroup else None).run(["/bin/sh", "-c", cmd], port, input=in_data or b"")
            return there.status, there.stdout, there.stderr
        environment = self.get_option("lab_environment")
        try:
            done = init_client.run(Path(self.get_option("lab_socket")), ["/bin/sh", "-c", cmd], input=in_data or b"",
                                   cgroup=Path(cgroup) if cgroup else None,
                                   env=dict(line.split("=", 1) for line in environment.splitlines()))
        except OSError as err:
            raise AnsibleConnectionFailure(f"{self.get_option('lab_socket')}: {err}") from err
        return done.status, done.stdout, done.stderr

    def put_file(self, in_path: str, out_path: str) -> None:
        self._copy(["/bin/sh", "-c", 'cat > "$0"', out_path], Path(in_path).read_bytes())

    def fetch_file(self, in_path: str, out_path: str) -> None:
        Path(out_path).write_bytes(self._copy(["cat", in_path], b""))

    def _copy(self, argv: list[str], data: bytes) -> bytes:
        done = init_client.run(Path(self.get_option("lab_socket")), argv, input=data)
        if done.status:
            raise AnsibleConnectionFailure(done.stderr.decode(errors="replace"))
        return done.stdout

    def close(self) -> None:
        self._connected = False
