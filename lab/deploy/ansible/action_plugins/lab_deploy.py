"""Ansible action: send one archive on standard input of one command, over whatever connection the host has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]
    """`archive`: a file on the controller; `command`: what reads it from standard input on the host."""

    TRANSFERS_FILES = False
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        data = Path(self._task.args["archive"]).read_bytes()
        status, out, err = self._connection.exec_command(str(self._task.args["command"]), in_data=data, sudoable=False)
        said = (out + err).decode(errors="replace").strip()
        result.update(changed=True, rc=status)
        if status:
            result.update(failed=True, msg=said or f"status {status}")
        return result
