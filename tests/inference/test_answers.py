"A file of answers: killed at any moment and given again, it has the same bytes."
import json, os, random, signal, time

import pytest

from llmft.core import UserError
from llmft.inference.answers import answer_file
from tests.bad_data import ask
from tests.small import small_run

SETTINGS = {'max_new_tokens': 8, 'temperature': 1.0, 'seed': 3, 'batch_size': 4, 'progress': None}


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A run, 40 rows, and the answers of one go."
    home = tmp_path_factory.mktemp('answers')
    small_run(home)
    rows = [{'instruction': f'Add {i}', 'input': 'x' * (i % 5), 'output': 'not asked'} for i in range(40)]
    (home/'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    answer_file(home/'run', home/'rows.jsonl', home/'whole.jsonl', **SETTINGS)
    return home, (home/'whole.jsonl').read_bytes()


def again(home, out, **settings): return answer_file(home/'run', home/'rows.jsonl', out, **SETTINGS | settings)


def test_each_row_in_order(home):
    lines = [*map(json.loads, home[1].splitlines())]
    assert [line['question']['instruction'] for line in lines] == [f'Add {i}' for i in range(40)]
    assert len({line['key'] for line in lines}) == 40 and {line['reason'] for line in lines} <= {'stop', 'length'}


@pytest.mark.parametrize('seed', range(3))
def test_cut_anywhere(seed, home, tmp_path):
    home, whole = home
    out = tmp_path/'out.jsonl'
    out.write_bytes(whole[:random.Random(seed).randrange(len(whole))])
    again(home, out)
    assert out.read_bytes() == whole


def killed(home, out, wait): # by SIGKILL, after `wait` seconds from the first byte on
    pid = os.fork()
    if not pid:
        try: again(home, out)
        finally: os._exit(0)
    size, end = out.stat().st_size if out.exists() else 0, time.time() + 60
    while time.time() < end and (not out.exists() or out.stat().st_size == size):
        if os.waitpid(pid, os.WNOHANG)[0]: return False
        time.sleep(.001)
    time.sleep(wait)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


@pytest.mark.parametrize('n', [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed(n, home, tmp_path):
    home, whole = home
    out, randomly, kills = tmp_path/'out.jsonl', random.Random(1), 0
    for _ in range(n):
        if not killed(home, out, randomly.uniform(0, .02)): break
        kills += 1
        assert whole.startswith(out.read_bytes().rpartition(b'\n')[0])
        if out.stat().st_size == len(whole): out.write_bytes(whole[:len(whole)//3]) # it was quicker than the kill
    assert kills == n
    again(home, out)
    assert out.read_bytes() == whole
    stamp = out.stat().st_mtime_ns
    again(home, out) # nothing is left to do
    assert out.stat().st_mtime_ns == stamp


@pytest.mark.parametrize('settings', [{'temperature': .5}, {'seed': 4}, {'max_new_tokens': 9}, {'batch_size': 5},
                                      {'top_k': 3}, {'stop': 'x'}], ids=str)
def test_other_settings_do_not_go_on(settings, home, tmp_path):
    out = tmp_path/'out.jsonl'
    out.write_bytes(home[1][:500])
    with pytest.raises(UserError, match='out.jsonl:1: this answers another row, or was made by'):
        again(home[0], out, **settings)
    assert out.read_bytes() == home[1][:500]


@pytest.mark.parametrize('line, message', [
    ('{"instruction": "a"', 'rows.jsonl:3'), ('{"input": "a"}', 'rows.jsonl:3: .*needs `instruction`'),
    ('{"instruction": 3}', 'rows.jsonl:3: `instruction` must be text'),
    ('{"instruction": "' + 'word ' * 3000 + '"}', 'rows.jsonl:3: the prompt has')],
    ids=['no JSON', 'no column', 'a number', 'too long'])
def test_a_row_that_cannot_be_asked_is_named(line, message, home, tmp_path):
    (tmp_path/'rows.jsonl').write_text('{"instruction": "a"}\n{"instruction": "b"}\n' + line + '\n')
    with pytest.raises(UserError, match=message):
        answer_file(home[0]/'run', tmp_path/'rows.jsonl', tmp_path/'out.jsonl', **SETTINGS)
    assert not (tmp_path/'out.jsonl').exists()


def test_a_failure_of_the_model_names_the_rows(home, tmp_path, monkeypatch):
    from llmft.inference import answers
    calls, true_grow = [], answers.grow
    def grow(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3: raise RuntimeError("can't allocate memory: you tried to allocate 9 bytes")
        return true_grow(*args, **kwargs)
    monkeypatch.setattr(answers, 'grow', grow)
    with pytest.raises(UserError, match='Memory ran out while answering .*rows.jsonl:9 to .*rows.jsonl:12.*--batch'):
        again(home[0], tmp_path/'out.jsonl')
    assert (tmp_path/'out.jsonl').read_bytes() == b''.join(home[1].splitlines(keepends=True)[:8]) # those before stay


def test_the_command(home, tmp_path):
    run, rows, out = home[0]/'run', home[0]/'rows.jsonl', tmp_path/'out.jsonl'
    settings = ['--max-new-tokens', '8', '--temperature', '1', '--seed', '3', '--batch-size', '4']
    status, said, err = ask('generate', str(run), str(rows), str(out), *settings)
    assert status == 0 and f'written: {out}' in said.replace('\n', ''), err
    assert out.read_bytes() == home[1]
    status, _, err = ask('generate', str(run), str(rows), str(out), '-p', 'a')
    assert status == 2 and 'Put this question into it' in err
    assert ask('generate', str(run), str(rows), str(tmp_path/'none'/'..'/'x.jsonl'), '--top-p', '2')[0] == 2


def test_probabilities(home, tmp_path):
    out = again(home[0], tmp_path/'out.jsonl', logprobs=2)
    for line in map(json.loads, out.read_text().splitlines()):
        assert all(token['logprob'] <= 0 and len(token['likeliest']) == 2 for token in line['tokens'])
