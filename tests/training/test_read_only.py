"A disk that may not be written, before a run and while it goes on."
import shutil, subprocess
import pytest
from llmft.config.config import load_config
from llmft.core import UserError
from llmft.inference.load import load_run
from llmft.training import train
from llmft.training.compare import compare_runs
from llmft.training.run import Run, write_status
from llmft.training.train import finetune
from tests.killed import result
from tests.small import small_config, tree


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp('read_only')
    config = small_config(home, max_steps=4, save_steps=1, logging_steps=1, test_datasets=[], val_set_size=2,
                          micro_batch_size=1, max_new_tokens=2)
    finetune(config, say=None)
    return home, config


def remount(disk, how): subprocess.run(['mount', '-o', f'remount,{how}', str(disk)], check=True)


@pytest.fixture
def disk(tmp_path):
    disk = tmp_path/'disk'
    disk.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=30m', 'tmpfs', str(disk)], capture_output=True)
    if mounted.returncode: pytest.skip('only root can make a disk')
    yield disk
    subprocess.run(['umount', str(disk)], check=True)


def run_on(disk, home, state): # -> configuration of a copy of the run on the disk
    folder, config = home
    shutil.copytree(folder/'run', disk/'run')
    write_status(Run(disk/'run'), state)
    if state == 'running': shutil.rmtree(disk/'run'/'checkpoints'/'checkpoint-4')
    return load_config(config, output_dir=str(disk/'run'))


@pytest.mark.parametrize('flags', [{}, {'resume': True}, {'overwrite': True}])
def test_before_the_run(flags, home, disk):
    config = run_on(disk, home, 'running')
    before = tree(disk)
    remount(disk, 'ro')
    with pytest.raises(UserError, match=f'output_dir: {disk}/run.* cannot be written.*read-only.*--out DIR'):
        finetune(config, say=None, **flags)
    with pytest.raises(UserError, match='read-only.*--out DIR'):
        finetune(load_config(config, output_dir=str(disk/'other'/'run')), say=None)
    assert tree(disk) == before


def test_a_finished_run_can_be_read(home, disk):
    run_on(disk, home, 'finished')
    remount(disk, 'ro')
    assert load_run(disk/'run').generate(['a'], max_new_tokens=1) and compare_runs([disk/'run', home[0]/'run'])


@pytest.mark.parametrize('place', ['run', 'run/checkpoints'])
def test_a_folder_of_somebody_else(place, home, disk, tmp_path):
    "It can be entered, and not be written."
    config = run_on(disk, home, 'running')
    folder = disk/place
    subprocess.run(['mount', '--bind', str(folder), str(folder)], check=True)
    try:
        remount(folder, 'bind,ro')
        with pytest.raises(UserError, match=f'{folder}.*cannot be written') as e: finetune(config, say=None)
        assert '--out DIR' in str(e.value) or 'give the same command again' in str(e.value)
    finally: subprocess.run(['umount', str(folder)], check=True)
    assert finetune(config, say=None).status['state'] == 'finished'
    assert result(disk/'run') == result(home[0]/'run')


@pytest.mark.parametrize('step', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_while_it_goes_on(step, home, disk, monkeypatch):
    config = load_config(home[1], output_dir=str(disk/'run'))
    class Locks(train.Progress):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step: remount(disk, 'ro')
    monkeypatch.setattr(train, 'Progress', Locks)
    with pytest.raises(UserError, match=f'{disk}/run.* cannot be written: .*give the same command again'):
        finetune(config, say=None)
    monkeypatch.undo()
    remount(disk, 'rw')
    finetune(config, say=None)
    assert result(disk/'run') == result(home[0]/'run')
