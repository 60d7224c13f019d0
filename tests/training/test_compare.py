"Runs beside each other, in Python and from a shell."
import json
import pytest
from llmft import Run, UserError, compare_runs, load_config, save_config
from llmft.commands.cli import main

BASE = {'base_model': 'builtin/smollm2-135m', 'datasets': [{'path': 'builtin/python-evol-1k', 'split': 'train[:60]'}]}


def write_run(folder, metrics=((1, 2.0), (2, 1.5)), data=None, **keys):
    folder.mkdir(parents=True)
    save_config(load_config(BASE | {'output_dir': str(folder)} | keys), folder/'config_completed.yml')
    lines = [{'step': step, 'seconds': step, 'loss': loss} for step, loss in metrics]
    (folder/'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    if data: (folder/'data.json').write_text(json.dumps(data))
    return folder


@pytest.fixture
def runs(tmp_path):
    other = [{'path': 'builtin/python-evol-1k', 'split': 'train[:30]'}]
    return [write_run(tmp_path/'a', learning_rate=1e-4), write_run(tmp_path/'b', learning_rate=1e-3, datasets=other)]


def test_only_what_differs(runs):
    table = compare_runs(runs).settings()
    assert table.header == ['key', 'a', 'b'] and {row[0]: row[1:] for row in table.rows} == {
        'learning_rate': ['0.0001', '0.001'], 'datasets[0].split': ['train[:60]', 'train[:30]']}


def test_same_settings_and_same_names(tmp_path):
    same = compare_runs([write_run(tmp_path/'x'/'run'), write_run(tmp_path/'y'/'run', data={'rows': 1})])
    assert same.names == [(tmp_path/'x'/'run').as_posix(), (tmp_path/'y'/'run').as_posix()]
    assert [row[0] for row in same.settings().rows] == ['(data)']
    assert 'The settings are the same.' in str(compare_runs([tmp_path/'x'/'run', write_run(tmp_path/'z')]))


def test_results(runs, tmp_path):
    scored = {'rows': [{'ok': True}, {'ok': False}]}, {'base': {}, 'tuned': {'rows': [{'ok': True}]}}
    for run, values in zip(runs, scored):
        (run/'scores.json').write_text(json.dumps(values))
    empty = write_run(tmp_path/'empty', metrics=())
    table = compare_runs([*runs, Run(empty)]).results()
    assert table.header == ['run', 'steps', 'seconds', 'loss', 'pass@1']
    assert [row[-1] for row in table.rows] == ['50.0%', '100.0%', ''] and table.rows[2][1] == '0'


def test_picture_only_where_asked(runs, tmp_path, capsys):
    before = sorted(tmp_path.rglob('*'))
    main_exit(['compare', *map(str, runs)])
    assert 'learning_rate' in capsys.readouterr().out and sorted(tmp_path.rglob('*')) == before
    main_exit(['compare', *map(str, runs), '--picture', str(tmp_path/'new'/'c.png')])
    assert (tmp_path/'new'/'c.png').read_bytes()[:4] == b'\x89PNG'


def main_exit(args):
    with pytest.raises(SystemExit) as e: main(args)
    assert not e.value.code


@pytest.mark.parametrize('break_it, message', [
    (lambda run: (run/'config_completed.yml').unlink(), 'not the folder of a run'),
    (lambda run: (run/'metrics.jsonl').write_bytes(b'\0'*20 + b'\n'), 'metrics.jsonl:1 cannot be read'),
    (lambda run: (run/'metrics.jsonl').write_text('[1]\n'), 'metrics.jsonl:1 cannot be read'),
    (lambda run: (run/'metrics.jsonl').write_text('{"loss": 1}\n'), 'metrics.jsonl:1 cannot be read')])
def test_folders_that_cannot_be_read(runs, break_it, message):
    break_it(runs[1])
    with pytest.raises(UserError, match=message): compare_runs(runs)


def test_too_few_and_wrong_pictures(runs, tmp_path, capsys):
    for folders in ([], runs[:1], [runs[0], runs[0]], str(runs[0])):
        with pytest.raises(UserError, match='two run folders or more'): compare_runs(folders)
    for file, message in (('c.bmp', 'must end in'), ('c', 'must end in'), ('a/metrics.jsonl/c.png', 'cannot be')):
        with pytest.raises(SystemExit) as e: main(['compare', *map(str, runs), '--picture', str(tmp_path/file)])
        assert e.value.code == 2 and message in capsys.readouterr().err
