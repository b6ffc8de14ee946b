from __future__ import annotations

import os
import signal
from dataclasses import replace

from tests.jobs.support import child

from ragtune_mcp.core.jobs.processes import ProcessName, process_name, start_time


def test_a_name_reads_back_as_written():
    me = process_name()
    assert ProcessName.parse(str(me)) == me


def test_other_text_is_no_process_name():
    assert [ProcessName.parse(text) for text in ("", "ray:ft_1-1", "host|x|1", "host|12")] == [None] * 4


def test_this_process_is_here_and_alive():
    assert (process_name().is_here, process_name().is_alive) == (True, True)


def test_a_killed_process_is_dead_while_still_a_zombie():
    process = child("input()")
    name = process_name(process.pid)
    assert name.is_alive
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert os.path.exists(f"/proc/{process.pid}")
    assert not name.is_alive
    process.communicate()
    assert not name.is_alive


def test_a_reused_pid_is_another_process():
    me = process_name()
    assert not replace(me, started=str(int(me.started) - 1)).is_alive


def test_a_process_that_was_gone_when_named_is_dead():
    process = child("pass")
    process.communicate()
    name = process_name(process.pid)
    assert (name.started, name.is_alive, start_time(process.pid)) == ("", False, None)


def test_a_command_name_with_brackets_does_not_confuse_the_start_time(tmp_path):
    odd = tmp_path / "a) R 1 2 (b"
    odd.symlink_to("/bin/cat")
    import subprocess

    process = subprocess.Popen([odd], stdin=subprocess.PIPE)
    assert start_time(process.pid).isdigit()
    assert int(start_time(process.pid)) >= int(start_time(os.getpid()))
    process.communicate()


def test_a_process_of_another_place_is_not_killed():
    process = child("input()")
    elsewhere = replace(process_name(process.pid), place="other")
    elsewhere.kill_group()
    assert process_name(process.pid).is_alive
    process.kill()
    process.communicate()
