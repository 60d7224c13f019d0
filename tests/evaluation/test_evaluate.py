"What `run_code` promises about programs that mean harm, tested from outside."
import socket, sys, time
from pathlib import Path

import pytest

from llmft.evaluation import sandbox
from llmft.evaluation.attacks import _leftovers
from llmft.evaluation.scores import Scores, extract_code
from llmft.evaluation.sandbox import run_code, run_code_batch, sandbox_report

linux = pytest.mark.skipif(sys.platform != 'linux', reason='a protection of Linux')
LAYER, HELD = sandbox._file_layer()
TESTS = 'assert double(4) == 8'


def test_plain_pass():
    r = run_code('def double(x): return 2*x', TESTS)
    assert (r.ok, r.reason, r.detail) == (True, 'ok', '')


@pytest.mark.parametrize('code, tests, reason, detail', [
    ('def double(x) return x', TESTS, 'syntax', 'SyntaxError'),
    ('x = "\ud800"', TESTS, 'syntax', 'surrogates'),
    ('x = "\0"', TESTS, 'syntax', 'null byte'),
    ('def double(x): return x', TESTS, 'assertion', 'assert double(4) == 8'),
    ('def double(x): return x', 'assert double(4) == 8, "not twice"', 'assertion', 'AssertionError: not twice'),
    ('', TESTS, 'error', "NameError: name 'double' is not defined"),
    ('x = 1', 'assert (', 'tests', 'SyntaxError'),
    ('input()', '', 'error', 'EOFError'),
    ('def f(n): return f(n+1)\nf(0)', '', 'error', 'RecursionError'),
    ('class E(Exception):\n    def __str__(self): raise RuntimeError\nraise E', '', 'error', 'E:'),
    ('raise KeyboardInterrupt', '', 'error', 'KeyboardInterrupt'),
])
def test_reasons(code, tests, reason, detail):
    r = run_code(code, tests)
    assert (r.ok, r.reason) == (False, reason) and detail in r.detail


def test_detail_is_short():
    r = run_code('raise ValueError("long\\n"*10000)', '')
    assert len(r.detail) <= 200 and '\n' not in r.detail


@pytest.mark.parametrize('code', [
    'while True: pass',
    'import time; time.sleep(60)',
    'while True:\n    try: import time; time.sleep(60)\n    except BaseException: pass',
    'import signal\nfor s in (2, 14, 15): signal.signal(s, signal.SIG_IGN)\nwhile True: pass',
])
def test_endless(code):
    start = time.time()
    assert run_code(code, '', timeout=1).reason == 'timeout'
    assert time.time() - start < 3


@pytest.mark.parametrize('end', ['import sys; sys.exit(0)', 'exit()', 'raise SystemExit', 'import os; os._exit(0)',
    'import threading, os; threading.Timer(.0, lambda: os._exit(0)).start(); import time; time.sleep(2)'])
def test_early_exit_is_no_pass(end):
    r = run_code(f'print("ok")\n{end}', 'assert False')
    assert not r.ok
    r = run_code(f'{end}', '')
    assert not r.ok and r.reason in ('exit', 'error')


def test_printed_marker_is_no_pass():
    marker = ('import os\nfor fd in range(64):\n'
              '    for text in (b"ok\\n", b"ok\\nok\\n\\n\\n", b"0"*32 + b"\\nok\\nCPU\\n"):\n'
              '        try: os.write(fd, text)\n        except OSError: pass\n')
    assert not run_code(marker + 'os._exit(0)', 'assert False').ok
    assert not run_code(marker, 'assert False').ok
    assert not run_code('import os; os.write = lambda *a: None; os._exit = lambda *a: None', 'assert False').ok


def test_noise_does_not_hurt():
    assert run_code('import sys\nfor _ in range(10**5): print("x"*80); print("y"*80, file=sys.stderr)', '').ok


def test_secret_not_visible(monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_secret')
    assert run_code('import os', 'assert "HF_TOKEN" not in os.environ and "hf_secret" not in str(os.environ)').ok


@linux
def test_memory():
    assert 'AS' in HELD
    assert run_code('x = bytearray(2**31)', '').reason == 'memory'
    assert run_code('x = []\nwhile True: x.append("a"*10**6 + str(len(x)))', '', memory=2**28).reason == 'memory'
    assert run_code('x = bytearray(2**28)', '').ok


def test_network():
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
        code = f'import socket; socket.create_connection(("127.0.0.1", {port}), timeout=2)'
        if sys.platform != 'win32': assert run_code(code, '').reason in ('refused', 'error')
        if 'SECCOMP' in HELD: assert 'kernel' in sandbox_report()['network and sockets']


def test_files_stay_and_vanish(tmp_path):
    note = tmp_path/'note.txt'
    note.write_text('mine')
    r = run_code('import os, tempfile\nopen("a.txt", "w").write("a")\nos.mkdir("d"); open("d/b", "w").close()\n'
                 'with tempfile.NamedTemporaryFile() as f: f.write(b"x")\n'
                 'import shutil; shutil.rmtree("d"); os.chmod("a.txt", 0)\nraise ValueError(os.getcwd())', '')
    assert r.detail.startswith('ValueError: ')
    assert not Path(r.detail.removeprefix('ValueError: ')).parent.exists()
    file, folder = repr(str(note)), repr(str(tmp_path))
    for bad in (
        f'open({file}, "a")',
        f'import os; os.remove({file})',
        f'import shutil; shutil.rmtree({folder})',
        f'import os; os.rename({file}, "x")',
        f'from pathlib import Path; Path({file}).write_text("")',
        'open("../report", "w")',
        f'import os; os.symlink({folder}, "l"); open("l/x", "w")',
        f'import os; os.chdir({folder}); open("x", "w")',
    ):
        assert run_code(bad, '').reason == 'refused', bad
    assert note.read_text() == 'mine' and len(list(tmp_path.iterdir())) == 1


@linux
@pytest.mark.skipif('LANDLOCK' not in HELD, reason='no Landlock here')
def test_kernel_keeps_files_from_c_code(tmp_path):
    note = tmp_path/'note.txt'
    note.write_text('mine')
    code = f'import ctypes; libc = ctypes.CDLL(None); n = libc.unlink({str(note).encode()!r})'
    assert run_code(code, 'assert n == -1').ok
    assert run_code(f'{code}; n = libc.truncate({str(note).encode()!r}, 0)', 'assert n == -1').ok
    assert run_code(f'{code}; n = libc.system(b"echo gone > {note}")', 'assert n != 0').ok
    assert note.read_text() == 'mine'
    sub = 'import os; os.mkdir("a"); os.mkdir("b"); open("a/x", "w").close(); os.rename("a/x", "b/x")'
    assert run_code(sub, 'assert os.path.exists("b/x")').ok


@pytest.mark.parametrize('code', [
    'import os; os.fork()',
    'import os; os.system("true")',
    'import subprocess, sys; subprocess.run([sys.executable, "-V"])',
    'import os, signal; os.kill(os.getppid(), 9)',
])
@pytest.mark.skipif(sys.platform == 'win32', reason='not on Windows')
def test_no_other_programs(code):
    assert run_code(code, '').reason == 'refused'


@linux
def test_what_is_left_behind_is_killed(tmp_path):
    code = 'import ctypes, time\nif ctypes.CDLL(None).fork() == 0: time.sleep(3000.125)\n'
    assert run_code(code, '').ok
    both = 'import ctypes, time\nctypes.CDLL(None).fork()\ntime.sleep(3000.125)'
    assert run_code(both, '', timeout=1).reason == 'timeout'
    time.sleep(.2)
    assert not _leftovers()


@linux
def test_fork_bomb_ends():
    start = time.time()
    r = run_code('import ctypes\nlibc = ctypes.CDLL(None)\nwhile True: libc.fork()', '', timeout=1)
    assert not r.ok and time.time() - start < 5


@linux
def test_crash():
    r = run_code('import ctypes; ctypes.string_at(0)', '')
    assert (r.reason, r.detail) == ('crash', 'ended by signal 11')


@pytest.mark.parametrize('code', [
    'from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 1\nassert A().x == 1',
    'from __future__ import annotations\nimport asyncio\nasync def f(): return 1\nassert asyncio.run(f()) == 1',
    'from concurrent.futures import ThreadPoolExecutor\n'
    'with ThreadPoolExecutor(8) as p: assert sum(p.map(int, "12345678")) == 36',
    'import sqlite3\nc = sqlite3.connect(":memory:"); c.execute("create table t (x)")\n'
    'sqlite3.connect("a.db").execute("create table t (x)")',
    'import pickle\nclass A: pass\nassert type(pickle.loads(pickle.dumps(A()))) is A',
    'import tempfile, os\nwith tempfile.TemporaryDirectory() as d: open(os.path.join(d, "x"), "w").write("x")',
    'import collections, datetime, decimal, functools, heapq, itertools, json, logging, random, re, statistics\n'
    'import string, typing, unittest, uuid',
    'assert __name__ != "__main__"\nif __name__ == "__main__": input()',
    'import os\nopen(os.devnull, "w").write("x")',
])
def test_ordinary_code_works(code):
    r = run_code(code, '')
    assert r.ok, r


def test_same_result_every_time():
    code = 'raise ValueError(list({"a", "b", "c", "d", "e"}))'
    assert len({run_code(code, '').detail for _ in range(4)}) == 1


def test_many_are_fast_and_in_order():
    start = time.time()
    results = run_code_batch([(f'x = {i}', f'assert x == {i} and x % 10') for i in range(100)], progress=False)
    assert time.time() - start < 20
    assert [r.ok for r in results] == [bool(i % 10) for i in range(100)]
    assert Scores.from_results([{}]*100, results).counts == {'all': (90, 100)}


@pytest.mark.parametrize('text, code', [
    ('x = 1', 'x = 1'), ('', ''), ('    x = 1\n', '    x = 1\n'),
    ('a\n```python\nx = 1\n```\nb', 'x = 1'), ('```\nx = 1', 'x = 1'), ('~~~py\nx\n~~~', 'x'),
    ('````\n```\n````', '```'),
    ('```bash\npip install x\n```\n```python\nx = 1\n```', 'x = 1'), ('```js\nx\n```', 'x'),
    ('```python\r\nx = 1\r\n```\r\n', 'x = 1\r'), ('use ```x``` here', 'use ```x``` here'),
    ('- a\n  ```python\n  if x:\n      y\n\n  z\n  ```', 'if x:\n    y\n\nz'), ('``` python title="a.py"\nx\n```', 'x'),
])
def test_extract(text, code):
    assert extract_code(text) == code
