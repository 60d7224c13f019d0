"The sandbox against programs that mean harm, as root and as another user, with each of its layers."
import os, shutil, subprocess, sys, tempfile
from pathlib import Path

import pytest

from llmft.core import UserError
from llmft.evaluation import attacks, sandbox
from llmft.evaluation.attacks import _REMAINS, ATTACKS, try_attacks
from llmft.evaluation.sandbox import check_sandbox, run_code, run_code_batch, sandbox_report
from llmft.evaluation.scores import row_program, row_tests
from tests.evaluation.problems import HUMAN_EVAL, MBPP
from tests.test_docs import ROOT

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='protections of Linux')
LAYER = sandbox._file_layer()[0]
needs_layer = pytest.mark.skipif(not LAYER, reason='nothing holds on this machine')
OPEN_TO_ALL = ['a file in /tmp', 'a file in /dev/shm'] # what another user may do


def test_there_are_enough_attacks():
    assert sum(len(group) for name, group in ATTACKS.items() if name != 'remains') >= 64


@needs_layer
@pytest.mark.parametrize('group', [group for group in ATTACKS if group != 'remains'])
def test_attacks(group):
    before = {*Path(tempfile.gettempdir()).glob('llmft-home-*')}
    assert try_attacks([group]).through == []
    assert {*Path(tempfile.gettempdir()).glob('llmft-home-*')} <= before


def test_attacks_are_programs():
    for group, of_group in ATTACKS.items():
        for name, attack in of_group.items():
            words = dict(HOME='/home', PARENT=1, BYSTANDER=2, PORT=3, ABSTRACT='x')
            for text in attacks._programs(group, attack, words): compile(text, name, 'exec')


@needs_layer
def test_only_what_is_named_remains():
    assert {*try_attacks(['remains']).through} <= {*_REMAINS}


def test_attacks_can_succeed(): # the measure measures
    through = [a.name for a in map(lambda n: attacks._attack('write', n, ''), ('C: unlink', 'C: rename')) if not a.held]
    assert through == ['C: unlink', 'C: rename']
    assert not attacks._attack('read', 'open', '').held


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason='needs root')
@pytest.mark.parametrize('group', ['read', 'write', 'network', 'processes', 'forging'])
def test_attacks_as_another_user(group):
    assert {*try_attacks([group], layers=('nobody',)).through} <= {*OPEN_TO_ALL}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('bwrap'), reason='needs bubblewrap')
@pytest.mark.parametrize('group', ['read', 'write', 'network', 'processes', 'forging'])
def test_attacks_in_bubblewrap(group):
    if not sandbox._file_layer(('bubblewrap',))[0]: pytest.skip('bubblewrap is not allowed here')
    own_world = {'a file beside the folder'} # it can be made, in a folder that nobody else sees
    assert {*try_attacks([group], layers=('bubblewrap',)).through} <= own_world


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason='needs root')
def test_attacks_where_llmft_is_not_run_by_root():
    code = ('from llmft.evaluation.attacks import try_attacks, ATTACKS\n'
            'from llmft.evaluation.sandbox import _file_layer\n'
            'groups = [g for g in ATTACKS if g != "remains"]\nprint(_file_layer()[0], try_attacks(groups).through)')
    command = ['setpriv', '--reuid', '65534', '--regid', '65534', '--clear-groups', sys.executable, '-c', code]
    p = subprocess.run(command, capture_output=True, text=True, cwd='/', env=os.environ | {'PYTHONPATH': str(ROOT)})
    if 'Permission denied' in p.stderr: pytest.skip('another user cannot run this Python')
    assert p.stdout.split(maxsplit=1) == [LAYER, '[]\n'], p.stderr


def test_refuses_where_nothing_holds(monkeypatch):
    with pytest.raises(UserError, match='--unsafe'): check_sandbox(layers=())
    assert sandbox_report(layers=())['holds'].startswith('NO')
    monkeypatch.setattr(sandbox.check_sandbox, '__defaults__', (False, ()))
    with pytest.raises(UserError, match='unsafe=True'): run_code('x = 1', '')
    with pytest.raises(UserError, match='unsafe=True'): run_code_batch([('x = 1', '')], progress=False)
    assert run_code('x = 1', 'assert x == 1', unsafe=True).ok


def test_limits_hold_without_a_layer():
    assert sandbox._run('x = bytearray(2**31)', '', '', 5, 2**30)[0].reason == 'memory'
    assert sandbox._run('while True: pass', '', '', .5, 2**30)[0].reason == 'timeout'


def test_report_names_the_layer():
    report = sandbox_report()
    assert {*report} >= {'holds', 'time', 'memory', 'files outside', 'network and sockets', 'other processes', 'tests'}
    if LAYER == 'landlock': assert 'Landlock' in report['files outside']


RIGHT = [
    ('def sort(xs): xs.sort()', 'xs = [2, 1]\nassert sort(xs) is None and xs == [1, 2]'),
    ('def apply(f, x): return f(x)', 'assert apply(lambda x: x + 1, 2) == 3 and apply(str.upper, "a") == "A"'),
    ('class Low(ValueError): pass\ndef f(x): raise Low(x)', 'try: f(-1)\nexcept Low as e: assert e.args == (-1,)'),
    ('def count():\n    n = 0\n    while True:\n        yield n\n        n += 1',
     'import itertools\nassert list(itertools.islice(count(), 3)) == [0, 1, 2]'),
    ('class V:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return V(self.x + o.x)\n'
     '    def __len__(self): return 4\n    def __rmul__(self, n): return V(n * self.x)\n'
     '    def __eq__(self, o): return self.x == o.x\n    def __enter__(self): return self\n'
     '    def __exit__(self, *a): pass',
     'v = V(1)\nassert (v + V(2)).x == 3 and len(v) == 4 and isinstance(v, V) and (3 * v).x == 3 and v == V(1)\n'
     'with v as w: assert w is v'),
    ('import asyncio\nasync def g(x):\n    await asyncio.sleep(0)\n    return x',
     'import asyncio\nassert asyncio.run(g(1)) == 1'),
    ('def total(nodes): return sum(n.value for n in nodes)',
     'class Node:\n    def __init__(self, v): self.value = v\nassert total([Node(1), Node(2)]) == 3'),
    ('from collections import Counter\ndef f(s): return Counter(s)', 'assert f("aab").most_common(1) == [("a", 2)]'),
    ('class Animal:\n    def speak(self): return "x"', 'class Dog(Animal): pass\nassert Dog().speak() == "x"'),
    ('def f(): print("hi")', 'import io, contextlib\nout = io.StringIO()\n'
                             'with contextlib.redirect_stdout(out): f()\nassert out.getvalue() == "hi\\n"'),
    ('from enum import Enum\nclass C(Enum):\n    R = 1\ndef f(): return C.R', 'assert f() is C.R and C.R.value == 1'),
    ('class T(dict): pass\nclass U:\n    def __contains__(self, k): return k == "a"',
     'assert "a" in U() and T() == {}'),
    ('import numpy as np\ndef f(n): return np.arange(n)', 'import numpy as np\nassert np.allclose(f(3), [0, 1, 2])'),
    ('def dec(f):\n    return lambda *a: f(*a) + 1', '@dec\ndef h(x): return x * 2\nassert h(3) == 7')]


@pytest.mark.parametrize('code, tests', RIGHT)
def test_right_answers_pass(code, tests):
    result = run_code(code, tests, unsafe=True, memory=2**32)
    assert result.ok, result


@pytest.mark.parametrize('problems', [
    HUMAN_EVAL[:40], pytest.param(HUMAN_EVAL[40:], marks=pytest.mark.slow)], ids=['some', 'rest'])
def test_shape_of_human_eval(problems):
    answers = [(p, kind) for p in problems for kind in ('canonical_solution', 'wrong_solution')]
    results = run_code_batch([row_program(p, p[kind]) for p, kind in answers], progress=False, unsafe=True)
    wrong = [(p['task_id'], kind, r) for (p, kind), r in zip(answers, results)
             if r.ok != (kind == 'canonical_solution')]
    assert wrong == [] and len(HUMAN_EVAL) == 164


def test_shape_of_human_eval_with_a_whole_function():
    p = HUMAN_EVAL[1]
    answer = f'Here it is:\n```python\ndef {p["entry_point"]}(xs: List[int]):\n{p["canonical_solution"]}```\nIt works.'
    assert run_code(*row_program(p, answer), unsafe=True).ok
    more = p['canonical_solution'] + '\n\nprint("never\n\ndef other(: pass'
    assert run_code(*row_program(p, more), unsafe=True).ok # what a base model writes after the function


@pytest.mark.parametrize('row', MBPP, ids=lambda row: str(row['task_id']))
def test_shape_of_mbpp(row):
    assert run_code(*row_program(row, row['code']), unsafe=True).ok
    assert run_code(*row_program(row, row['wrong']), unsafe=True).reason == 'assertion'


def test_rows_of_other_shapes_are_told():
    assert row_tests({'instruction': 'Add.'}) is None
    assert row_tests({'tests': ''}) is None
    with pytest.raises(UserError, match='must be text'): row_tests({'tests': ['assert True']})
    with pytest.raises(UserError, match='list of texts'): row_tests({'test_list': 'assert True'})
