"Each broken input of `broken_input` ends in one message within seconds, with status 2, and nothing is written."
import json, io, os, re, shutil, time
from pathlib import Path

import pytest

from tests.bad_data import ask
from tests.broken_input import BROKEN, NEWEST, RESUME, prepare
from tests.small import tree

CASES = {f'{group}: {case[0]}': case for group, cases in BROKEN.items() for case in cases}


@pytest.fixture(scope='module')
def template(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp('template'), os.getcwd()
    os.chdir(folder)
    prepare()
    os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def folder(template, tmp_path, monkeypatch):
    "Each case has its own copy of a model, a run, rows and a description."
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def told(*command): # what is said to be wrong
    before, start = tree(), time.process_time()
    status, out, err = ask(*command)
    assert status == 2, (out[-300:], err[-300:])
    assert 'Traceback' not in err and len(re.findall('^Error: ', err, re.M)) == 1, err
    assert tree() == before, 'something was written'
    assert time.process_time() - start < 10, 'too slow'
    return err[err.index('Error: ') + 7:].strip()


@pytest.mark.parametrize('name', CASES)
def test_broken(name):
    _, make, command = CASES[name]
    if make: make()
    message = told(*command)
    assert 10 < len(message) < 1500 and 'object at 0x' not in message, message


def test_whole_inputs_work(): # so that what is broken above is the cause
    assert ask('check', 'run.yml')[0] == 0
    status, out, err = ask('train', 'run.yml')
    assert status == 0, err
    assert ask('generate', 'run', '-p', 'a')[0] == 0
    status, out, err = ask('merge', 'run', 'merged')
    assert status == 0, err


@pytest.mark.parametrize('variable', ['LLMFT_HOME', 'XDG_CACHE_HOME'])
@pytest.mark.parametrize('path', ['data.jsonl', 'data.jsonl/below', 'x' * 300, '~nobody-of-this-name', '/proc/nowhere'])
def test_cache_that_cannot_be_used(variable, path, monkeypatch):
    monkeypatch.delenv('LLMFT_HOME', raising=False)
    monkeypatch.setenv(variable, path)
    assert 'ache' in told('check', 'run.yml') or variable in told('check', 'run.yml')


def test_there_are_many(): assert len(CASES) >= 480


def test_bytes_in_a_chat(monkeypatch): # from a pipe
    with open('typed', 'wb+') as typed:
        typed.write(b'\xff\xfe\n')
        typed.seek(0)
        monkeypatch.setattr('sys.stdin', io.TextIOWrapper(typed))
        assert 'not UTF-8' in told('chat', 'run')


def test_questions_of_different_lengths(): # the tokenizer of the run has no padding token
    status, out, err = ask('generate', 'run', '-p', 'a', '-p', 'a ' * 30, '--max-new-tokens', '2')
    assert status == 0 and '[2]' in out, err


def test_broken_checkpoint_can_be_left():
    "The run goes on from the one before; a folder of another name is passed over."
    newest = Path(NEWEST)
    (newest/'optimizer.pt').write_bytes(b'')
    (newest.parent/'checkpoint-best').mkdir()
    (newest.parent/'checkpoint-best'/'trainer_state.json').write_text('{}')
    status, out, err = ask(*RESUME)
    assert status == 0 and 'goes on after step 1' in out, err
    assert f'{NEWEST}/optimizer.pt has 0 bytes' in out


BAD_LINES = ['\0' * 90, '{}', '[1]', 'null', '', '{"step": "a", "seconds": 1}',
             '{"step": 1, "seconds": 1, "loss": "low"}', '[' * 9000, '\ufffd\x02']

def test_measurements_can_be_left():
    "Lines that cannot be read are counted; the run needs none of them."
    good = '{"step": 1, "seconds": 1, "loss": 2}'
    Path('trained/metrics.jsonl').write_text('\n'.join([good, *BAD_LINES]) + '\n')
    status, out, err = ask(*RESUME)
    assert status == 0, err
    assert f'{len(BAD_LINES)} of its {len(BAD_LINES) + 1} lines cannot be read' in out.replace('\n', ' '), out
    kept = [json.loads(line) for line in Path('trained/metrics.jsonl').read_text().splitlines()]
    assert kept[0] == json.loads(good) and kept[-1]['step'] == 3
