"Each file of a run folder, damaged in each way: it is named, or not used, or written again."
import logging, shutil
from pathlib import Path
import pytest
from llmft.config.config import load_config
from llmft.core import UserError, _warn_once, write_manifest
from llmft.inference.load import load_run
from llmft.training.checkpoints import checkpoint_folders, newest_whole_checkpoint
from llmft.training.compare import compare_runs
from llmft.training.run import _AT_START, Run, write_status
from llmft.training.train import finetune
from tests.killed import result
from tests.small import small_config

def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data)//2] ^= 1
    file.write_bytes(data)


def halve(file): file.write_bytes(file.read_bytes()[:file.stat().st_size//2])


def empty(file): file.write_bytes(b'')


WAYS = {'flipped': flip, 'cut': halve, 'emptied': empty, 'removed': Path.unlink}
slow_ways = [pytest.param(way, marks=[] if way == 'flipped' else pytest.mark.slow) for way in WAYS]


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A finished run of four steps, and the same one as if it had been killed in the third."
    home = tmp_path_factory.mktemp('every_file')
    config = small_config(home, max_steps=4, save_steps=1, save_total_limit=2, logging_steps=1, test_datasets=[],
                          val_set_size=2, micro_batch_size=1, max_new_tokens=2, eval_steps=1)
    finetune(config, say=None)
    killed = shutil.copytree(home/'run', home/'killed')
    for name in ('checkpoints/checkpoint-4', 'adapter'): shutil.rmtree(killed/name)
    for name in ('README.md', 'samples.md', 'loss.png', 'memory.json', 'prompt_template.jinja', 'manifest.json'):
        (killed/name).unlink()
    write_manifest(killed, _AT_START)
    write_status(Run(killed), 'running')
    return home, config


def copy(home, name, tmp_path): # -> the configuration of a copy of a run folder
    folder, config = home
    shutil.copytree(folder/name, tmp_path/'run')
    return load_config(config, output_dir=str(tmp_path/'run'))


def files_of(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())


def messages(call, caplog): # what is said, logged or raised; without the lines that always come
    said = []
    with caplog.at_level(logging.WARNING, 'llmft'):
        try: call(lambda line: said.append(str(line)))
        except UserError as e: said.append(str(e))
    return '\n'.join([*said, *caplog.messages])


def damage(folder, name, way):
    WAYS[way](folder/name)
    return (folder/name).read_bytes() if (folder/name).exists() else None


AT_START = {*_AT_START, 'canary.json', 'report.md',
            'report.json', 'metrics.jsonl', 'samples.jsonl', 'status.json', 'manifest.json'}
IN_THE_END = {'README.md', 'loss.png', 'memory.json', 'samples.md', 'prompt_template.jinja'}
WITH_CARD = {'README.md'} # transformers writes one beside the checkpoints


def test_no_file_is_forgotten(home):
    def names(folder): return {p.name for p in folder.iterdir() if p.is_file()}
    folder = home[0]
    assert names(folder/'killed') == AT_START and names(folder/'run') == AT_START | IN_THE_END
    assert names(folder/'run'/'checkpoints') <= WITH_CARD


@pytest.mark.parametrize('way', WAYS)
def test_checkpoint(way, home, tmp_path):
    "The one before is used, and the file is named."
    config = copy(home, 'run', tmp_path)
    newest = checkpoint_folders(Path(config.output_dir)/'checkpoints')[-1]
    for name in files_of(newest):
        whole, said = (newest/name).read_bytes(), []
        damage(newest, name, way)
        assert newest_whole_checkpoint(newest.parent, said.append).name == 'checkpoint-3', name
        assert len(said) == 1 and (str(newest/name) in said[0] or name == 'manifest.json'), said
        (newest/name).write_bytes(whole)
    assert newest_whole_checkpoint(newest.parent) == newest


# when a run goes on; they are written again
NOT_READ = {'status.json', 'canary.json', 'report.md', 'report.json', 'manifest.json'}
DECIDE_OR_GROW = {'config_completed.yml', 'data.json', 'environment.json', 'metrics.jsonl'}

@pytest.mark.parametrize('way', slow_ways)
@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[] if name in DECIDE_OR_GROW else [pytest.mark.slow]) for name in sorted(AT_START)])
def test_going_on(name, way, home, tmp_path, caplog):
    "The file is named; what is learned is the same, or the run does not go on."
    config = copy(home, 'killed', tmp_path)
    run = Run(Path(config.output_dir))
    damaged = damage(run.path, name, way)
    said = messages(lambda say: finetune(config, say=say), caplog)
    if name not in NOT_READ: assert name in said and str(run.path) in said
    if run.status['state'] == 'running': # what is learned would be something else
        assert name in ('config_completed.yml', 'data.json')
        return
    assert run.status['state'] == 'finished' and (run.path/name).read_bytes() != damaged
    learned, measured = result(run.path)
    assert learned == result(home[0]/'run')[0]
    if name != 'metrics.jsonl': assert measured == result(home[0]/'run')[1]


@pytest.mark.parametrize('way', slow_ways)
@pytest.mark.parametrize('name', sorted(AT_START | IN_THE_END))
def test_a_finished_run(name, way, home, tmp_path, caplog):
    "The file is named by who reads it; the same command names all."
    config = copy(home, 'run', tmp_path)
    run = Run(Path(config.output_dir))
    damage(run.path, name, way)
    said = messages(lambda say: finetune(config, say=say), caplog)
    if name == 'status.json': assert 'goes on after step 4' in said or 'It is finished' in said
    elif name == 'manifest.json': assert (str(run.path) in said) == (way != 'removed') or 'It is finished' in said
    else: assert str(run.path) in said and name in said
    caplog.clear()
    _warn_once.cache_clear()
    read = {'metrics.jsonl': lambda say: say(run.table()), 'samples.jsonl': lambda say: say(run.samples),
            'environment.json': lambda say: say(run.environment),
            'data.json': lambda say: say(compare_runs([run.path, home[0]/'run'])),
            'config_completed.yml': lambda say: load_run(run.path)}
    if name in read: assert str(run.path/name) in messages(read[name], caplog) or way == 'removed'


@pytest.mark.parametrize('way', slow_ways)
def test_what_was_trained(way, home, tmp_path, caplog):
    "Damaged weights are not used; each other file is named."
    folder = Path(copy(home, 'run', tmp_path).output_dir)
    for name in files_of(folder/'adapter'):
        whole = (folder/'adapter'/name).read_bytes()
        damage(folder/'adapter', name, way)
        used = []
        said = messages(lambda say: used.append(load_run(folder)), caplog)
        if name == 'adapter_model.safetensors': assert not used
        is_named = str(folder/'adapter'/name) in said or name == 'manifest.json' and (said or way == 'removed')
        assert is_named or not used and 'cannot be loaded' in said, (name, said)
        (folder/'adapter'/name).write_bytes(whole)
        caplog.clear()
        _warn_once.cache_clear()
    assert not messages(lambda say: load_run(folder), caplog)
