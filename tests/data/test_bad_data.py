"""Every broken input of `bad_data`: one message that says where and what to do, status 2, nothing written;
and those that are right work."""
import functools
from pathlib import Path

import pytest

from tests.bad_data import BASE, BROKEN, WORKS, ask, message_row, works_row, write
from tests.test_docs import cells

PAGE = 'nbs/how_to/error_messages.ipynb' # its tables are what was said when it was saved
SAVE = f'Save the page again: nbdev-test --save --flags slow {PAGE}'
CASES = {f'{section}: {case["id"]}': case for section, cases in BROKEN.items() for case in cases}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    def load(*_, **__): raise AssertionError('the model was loaded')
    monkeypatch.setattr('llmft.training.train.load_base', load)


def tree(): return {str(p): p.read_bytes() if p.is_file() else None for p in Path('.').rglob('*')}


def message_of(*command): # what is said to be wrong
    before = tree()
    status, _, err = ask(*command)
    assert status == 2, err
    assert 'Traceback' not in err and err.count('Error: ') == 1, err
    assert tree() == before, 'something was written'
    return err


@functools.cache
def rows_of_the_page():
    return {line for cell in cells(PAGE) for output in cell.get('outputs', [])
            for line in ''.join(output.get('data', {}).get('text/markdown', '')).splitlines()}


@pytest.mark.parametrize('name', CASES)
def test_broken(name):
    case = CASES[name]
    write(case)
    message = message_of('check', 'run.yml')
    for part in case['says']: assert part in message
    assert 'pydantic' not in message and len(message) < 2000
    assert message_row(case, message) in rows_of_the_page(), SAVE


@pytest.mark.parametrize('command', ['train', 'preview'])
@pytest.mark.parametrize('cases', BROKEN.values(), ids=BROKEN)
def test_other_commands_say_it_too(cases, command):
    case = cases[0]
    write(case)
    message = message_of(command, 'run.yml')
    for part in case['says']: assert part in message


def test_nothing_to_preview():
    write({'run': BASE.replace('64', '8')})
    message = message_of('preview', 'run.yml')
    assert 'none of the first 8 rows can be used' in message
    assert 'longer than sequence_len 8 (row 1, 2, 3, …)' in message


@pytest.mark.parametrize('case', WORKS, ids=lambda c: c['id'])
def test_works(case):
    write(case)
    status, out, err = ask('check', 'run.yml')
    assert status == 0, err
    for part in case['says']: assert part in out
    assert works_row(case, out) in rows_of_the_page(), SAVE


def test_there_are_a_hundred(): assert len({case['id'] for cases in BROKEN.values() for case in cases}) >= 100
