import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from llmft.config.config import load_config, save_config
from llmft.core import UserError
from llmft.inference.load import load_run
from llmft.model.base import usual_learning_rate
from llmft.training import train
from llmft.training.checkpoints import (
    checkpoint_damage, checkpoint_folders, folder_lock, newest_whole_checkpoint, remove_old_checkpoints, step_of)
from llmft.training.run import Run, write_status
from llmft.training.train import finetune
from tests.killed import KINDS, result
from tests.small import small_config, tree


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A run of four steps with all its checkpoints."
    home = tmp_path_factory.mktemp('checkpoints')
    finetune(make(home), say=None)
    return home

def make(home, **keys):
    few = {'max_steps': 4, 'save_steps': 1, 'logging_steps': 1, 'lora_dropout': .1, 'test_datasets': [],
           'val_set_size': 2, 'micro_batch_size': 1}
    return small_config(home, **few | keys)

@pytest.fixture
def config(home, tmp_path): # the same run, as if it had been killed after its last step
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    for file in (*tmp_path.glob('run/*.yml'), tmp_path/'run'/'data.json'):
        file.write_text(file.read_text().replace(str(home), str(tmp_path)))
    (tmp_path/'run'/'manifest.json').unlink()
    config = make(tmp_path)
    write_status(Run(Path(config.output_dir)), 'running')
    return config

def run_of(config): return Path(config.output_dir)

def newest(config): return checkpoint_folders(run_of(config)/'checkpoints')[-1]

def told(call): # what it says
    said = []
    call(lambda line: said.append(str(line)))
    return said


# -- killed

def killed(kind, moments, seed, folder):
    "In a process of its own, which forks: this one has threads."
    done = subprocess.run([sys.executable, '-m', 'tests.killed', kind, moments, str(seed), str(folder)],
                          capture_output=True, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

@pytest.mark.slow
def test_killed_while_it_saves_twice_while_it_starts_and_at_its_end(tmp_path):
    run = killed('packed', 'saving,starting,starting,saving,ending,ending', 1, tmp_path)
    assert run['same'] and run['left'] == [] and sum(kill['killed'] for kill in run['kills']) >= 5

@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_killed_eight_times(kind, tmp_path):
    run = killed(kind, '8', 0, tmp_path)
    assert run['same'] and run['left'] == []


# -- damage

def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data)//2] ^= 1
    file.write_bytes(data)

WAYS = {'flipped': flip, 'cut': lambda file: file.write_bytes(file.read_bytes()[:-7]),
        'emptied': lambda file: file.write_bytes(b''), 'removed': Path.unlink,
        'of zeros': lambda file: file.write_bytes(bytes(file.stat().st_size)),
        'a folder': lambda file: (file.unlink(), file.mkdir())}
FILES = ['adapter_model.safetensors', 'optimizer.pt', 'scheduler.pt', 'rng_state.pth', 'trainer_state.json',
         'training_args.bin', 'adapter_config.json', 'manifest.json']

@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('name', FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(name, way, config):
    damaged = newest(config)
    WAYS[way](damaged/name)
    said = []
    found = newest_whole_checkpoint(damaged.parent, said.append)
    assert found == damaged.parent/'checkpoint-3'
    assert len(said) == 1 and str(damaged/name) in said[0] and 'is not used' in said[0]

@pytest.mark.parametrize('make_wrong', [
    lambda folder: folder.rename(folder.parent/'checkpoint-9'),
    lambda folder: shutil.copy(folder.parent/'checkpoint-3'/'trainer_state.json', folder),
    lambda folder: (folder/'scaler.pt').write_bytes(b'1'),
    lambda folder: (folder/'manifest.json').write_text('{"files": [1]}'),
    lambda folder: (folder/'manifest.json').write_text('[' * 99999)])
def test_other_damage(make_wrong, config):
    make_wrong(newest(config))
    said = []
    assert newest_whole_checkpoint(run_of(config)/'checkpoints', said.append).name == 'checkpoint-3' and len(said) == 1

def test_a_run_goes_on_from_the_one_before(config, home):
    flip(newest(config)/'optimizer.pt')
    (run_of(config)/'checkpoints'/'checkpoint-best').mkdir()
    said = told(lambda say: finetune(config, say=say))
    assert 'optimizer.pt was changed' in said[0] and 'goes on after step 3' in said[1]
    assert result(run_of(config)) == result(home/'run')
    assert checkpoint_damage(newest(config)) is None

def test_no_whole_one_is_left(config):
    for folder in checkpoint_folders(run_of(config)/'checkpoints'): flip(folder/'optimizer.pt')
    before = tree(run_of(config))
    with pytest.raises(UserError, match='none of its 2 checkpoints is whole.*--overwrite'): finetune(config, say=None)
    assert tree(run_of(config)) == before

@pytest.mark.parametrize('way', WAYS)
def test_a_damaged_adapter_is_not_used(way, config):
    file = run_of(config)/'adapter'/'adapter_model.safetensors'
    WAYS[way](file)
    with pytest.raises(UserError, match='adapter_model.safetensors'): load_run(run_of(config))

def test_the_best_one_may_be_damaged(tmp_path, monkeypatch):
    losses = iter(range(100)) # the first one is the best
    monkeypatch.setattr(train, '_mean_loss', lambda *_: float(next(losses)))
    config = make(tmp_path, load_best_model_at_end=True, eval_steps=1)
    run = finetune(config, say=None)
    state = json.loads((newest(config)/'trainer_state.json').read_text())
    best = Path(state['best_model_checkpoint'])
    assert best.is_dir() and best.parent == run_of(config)/'checkpoints' # its later name
    flip(best/'adapter_model.safetensors')
    write_status(run, 'running')
    with pytest.raises(UserError, match=f'the best checkpoint|{best.name}'): finetune(config, say=None)


# -- the end

@pytest.mark.parametrize('length', [
    pytest.param({'max_steps': 3}, marks=pytest.mark.slow), {'num_epochs': 1.5, 'max_steps': None}])
def test_no_step_after_the_last(length, tmp_path):
    config = make(tmp_path, **length, save_steps=2)
    run = finetune(config, say=None)
    before = result(run.path)
    for _ in range(2):
        write_status(run, 'running')
        again = finetune(config, resume=True, say=None)
        assert result(run.path) == before and again.status['state'] == 'finished'

def test_a_finished_run_says_so(config, home):
    write_status(Run(run_of(config)), 'finished')
    before = tree(run_of(config))
    for resume in ('auto', True):
        said = told(lambda say: finetune(config, resume=resume, say=say))
        assert len(said) == 1 and 'It is finished' in said[0]
    assert tree(run_of(config)) == before
    longer = load_config(config, max_steps=5)
    with pytest.raises(UserError, match='`max_steps` was 4 and is 5.*go on all the same'): finetune(longer, say=None)
    assert finetune(longer, resume=True, say=None).last('step') == 5

def test_other_settings_are_named(config):
    write_status(Run(run_of(config)), 'finished')
    with pytest.raises(UserError, match='`lora_r` was 2 and is 4; `lora_alpha`|`lora_alpha`.*`lora_r`'):
        finetune(load_config(config, lora_r=4, lora_alpha=7), say=None)

@pytest.mark.parametrize('limit', range(1, 10))
@pytest.mark.parametrize('best', [None, 2])
def test_as_many_checkpoints_as_the_limit_says(limit, best, tmp_path):
    for step in range(1, 9):
        newest = tmp_path/f'checkpoint-{step}'
        newest.mkdir()
        was_best = best and step >= best
        remove_old_checkpoints(newest, limit, was_best and tmp_path/f'checkpoint-{best}')
        steps = [step_of(path) for path in checkpoint_folders(tmp_path)]
        n_kept = min(step, max(limit, 2) if was_best and step > best else limit)
        assert len(steps) == n_kept and steps[-1] == step and (not was_best or best in steps)

def test_a_learning_rate_that_was_chosen_is_kept(tmp_path):
    config = make(tmp_path, max_steps=1, learning_rate=None)
    run = finetune(config, say=None)
    assert run.config.learning_rate == usual_learning_rate(config)
    assert 'learning rate' in (run.path/'settings.md').read_text()
    for same in config, run.config: assert 'It is finished' in told(lambda say: finetune(same, say=say))[0]
    with pytest.raises(UserError, match='`learning_rate` was .* and is 0.5'):
        finetune(load_config(config, learning_rate=.5), say=None)

def test_overwrite_and_resume(config):
    with pytest.raises(UserError, match='give only one'): finetune(config, overwrite=True, resume=True, say=None)

def test_an_empty_folder_is_taken(tmp_path):
    config = make(tmp_path, max_steps=1)
    run_of(config).mkdir()
    assert finetune(config, say=None).last('step') == 1


# -- a run that is replaced

def test_the_old_run_stays_until_the_new_one_has_ended(config, monkeypatch):
    old = tree(run_of(config))
    def fail(*args, **kwargs): raise UserError('no trainer')
    with monkeypatch.context() as m:
        m.setattr(train, 'make_trainer', fail)
        with pytest.raises(UserError): finetune(config, overwrite=True, say=None)
    aside = run_of(config).parent/'run.replaced'
    assert {k.replace('run.replaced', 'run'): v for k, v in tree(aside).items()} == old
    assert Run(run_of(config)).status == {'state': 'failed', 'message': 'no trainer', 'replaced': ['run.replaced']}
    (aside/'notes.txt').write_text('mine')
    said = told(lambda say: finetune(config, overwrite=True, say=say))
    assert any('is kept in' in line and 'notes.txt' in line for line in said)
    assert [p.name for p in run_of(config).parent.glob('run*')] == ['run', 'run.replaced'] or aside.is_dir()
    assert not (run_of(config).parent/'run.replaced-2').exists()

def test_out_of_memory_brings_the_old_run_back(config, monkeypatch):
    old = tree(run_of(config))
    def fail(*args, **kwargs): raise RuntimeError('CUDA out of memory. Tried to allocate 2 GiB')
    monkeypatch.setattr(train, 'make_trainer', fail)
    with pytest.raises(UserError, match='Memory ran out'): finetune(config, overwrite=True, say=None)
    assert tree(run_of(config)) == old

@pytest.mark.parametrize('key', ['lora_model_dir', 'datasets', 'test_datasets'])
def test_what_the_run_reads_is_not_replaced(key, config):
    out = run_of(config)
    shutil.copy(out.parent/'data.jsonl', out/'data.jsonl')
    value = str(out) if key == 'lora_model_dir' else [{'path': str(out), 'data_files': '*.jsonl'}]
    before = tree(out)
    with pytest.raises(UserError, match='which this run reads'):
        finetune(load_config(config, **{key: value, 'val_set_size': 0}), overwrite=True, say=None)
    assert tree(out) == before


# -- two at once, signals, files

def test_two_runs_in_one_folder(config):
    with folder_lock(run_of(config)):
        for flags in ({}, {'resume': True}, {'overwrite': True}):
            with pytest.raises(UserError, match='another process is writing'): finetune(config, **flags, say=None)

def start(config, tmp_path):
    file = save_config(load_config(config, max_steps=5000, save_steps=5000, val_set_size=0), tmp_path/'long.yml')
    command = [sys.executable, '-c', 'from llmft.commands.cli import main; main()', 'train', str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {'OMP_NUM_THREADS': '1'})
    for _ in range(1200):
        metrics = tmp_path/'run'/'metrics.jsonl'
        if metrics.is_file() and metrics.read_text().count('"loss"') > 2: return process
        assert process.poll() is None, process.communicate()
        time.sleep(.05)
    raise AssertionError('no step was made')

@pytest.mark.parametrize('name, code', [
    ('SIGTERM', 143), pytest.param('SIGHUP', 129, marks=pytest.mark.slow),
    pytest.param('SIGINT', 130, marks=pytest.mark.slow)])
def test_signals_save(name, code, tmp_path):
    process = start(make(tmp_path), tmp_path)
    (tmp_path/'run'/'save').touch()
    while (tmp_path/'run'/'save').exists(): time.sleep(.02)
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=60)
    run = Run(tmp_path/'run')
    assert process.returncode == code and run.status['state'] == 'stopped' and run.interrupted
    saved = checkpoint_folders(run.path/'checkpoints')
    assert len(saved) == 2 and not any(map(checkpoint_damage, saved)) and saved[-1].name.endswith(str(run.last('step')))

def test_a_file_stops_the_run(tmp_path):
    config = make(tmp_path)
    run_of(config).mkdir()
    stop = train.Progress.on_train_begin
    class Touch(train.Progress):
        def on_train_begin(self, *args, **kwargs):
            stop(self, *args, **kwargs)
            (run_of(config)/'stop').touch()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(train, 'Progress', Touch)
        run = finetune(config, say=None)
    assert run.interrupted and run.last('step') == 1 and not (run.path/'stop').exists()


# -- the disk and the clock

def test_a_full_disk_leaves_the_last_whole_one(tmp_path):
    disk = tmp_path/'disk'
    disk.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=700k', 'tmpfs', str(disk)], capture_output=True)
    if mounted.returncode: pytest.skip('only root can make a small disk')
    try:
        config = make(tmp_path, max_steps=40, output_dir=str(disk/'run'), val_set_size=0, save_total_limit=100)
        with pytest.raises(UserError, match='cannot be written: .*Make room') as e:
            finetune(config, say=None, force=True)
        assert 'checkpoint-' in str(e.value)
        saved = checkpoint_folders(run_of(config)/'checkpoints')
        assert saved and checkpoint_damage(saved[-1]) is None
        subprocess.run(['mount', '-o', 'remount,size=30m', str(disk)], check=True)
        shorter = load_config(config, max_steps=6)
        assert finetune(shorter, resume=True, say=None, force=True).status['state'] == 'finished'
    finally: subprocess.run(['umount', str(disk)], check=True)

def test_a_clock_that_jumps(config, monkeypatch):
    newest_one = newest(config)
    shutil.rmtree(newest_one)
    jumps = iter([1e9 * (-1)**n for n in range(100000)])
    now = time.time
    monkeypatch.setattr(time, 'time', lambda: now() + next(jumps))
    run = finetune(config, say=None)
    seconds = [m['seconds'] for m in run.metrics]
    assert seconds == sorted(seconds) and seconds[-1] < 100
    speeds = [m['tokens_per_second'] for m in run.metrics if 'loss' in m]
    assert all(0 < speed < 1e6 for speed in speeds)

def test_old_ones_are_removed_by_their_step(tmp_path):
    config = make(tmp_path, save_total_limit=2)
    finetune(config, say=None)
    assert [p.name for p in checkpoint_folders(run_of(config)/'checkpoints')] == ['checkpoint-3', 'checkpoint-4']


# -- what the optimizer and the machine know

def test_a_run_without_optimizer_has_the_right_rate(tmp_path):
    config = make(tmp_path, save_only_model=True, max_steps=6)
    rates = [m['learning_rate'] for m in finetune(config, say=None).metrics if 'loss' in m]
    shutil.rmtree(newest(config))
    write_status(Run(run_of(config)), 'running')
    said = told(lambda say: finetune(config, say=say))
    assert 'kept no optimizer' in said[0]
    assert [m['learning_rate'] for m in Run(run_of(config)).metrics if 'loss' in m] == rates

def test_another_machine_is_told(config):
    file = run_of(config)/'environment.json'
    values = json.loads(file.read_text())
    values['name'] = 'Tesla T4'
    values['packages']['trl'] = '1.0.0'
    values['choices'][0]['value'] = 'float16'
    file.write_text(json.dumps(values))
    said = '\n'.join(told(lambda say: finetune(config, say=say)))
    for part in ('before it was Tesla T4', 'before it was 1.0.0', 'number format: float32, before it was float16'):
        assert part in said


# -- a mirror

def test_the_next_session_goes_on_from_the_mirror(home, tmp_path):
    config = make(tmp_path, mirror_to=str(tmp_path/'drive'))
    finetune(config, say=None)
    there = tmp_path/'drive'/'run'
    assert (there/'adapter'/'manifest.json').is_file() and checkpoint_damage(newest(config)) is None
    shutil.rmtree(run_of(config)) # the machine is gone; its run had reached step 3
    shutil.rmtree(there/'checkpoints'/'checkpoint-4')
    write_status(Run(there), 'running')
    said = told(lambda say: finetune(config, say=say))
    assert 'is copied from' in said[0] and 'goes on after step 3' in said[1]
    assert result(run_of(config)) == result(home/'run') == result(there)
    assert [p.name for p in checkpoint_folders(there/'checkpoints')] == ['checkpoint-3', 'checkpoint-4']
    finetune(config, overwrite=True, say=None)
    assert (tmp_path/'drive'/'run.replaced'/'adapter').is_dir()

def test_a_mirror_that_fails_stops_nothing(tmp_path):
    (tmp_path/'drive').write_text('a file')
    config = make(tmp_path, mirror_to=str(tmp_path/'drive'))
    said = told(lambda say: finetune(config, say=say))
    told_of_it = [line for line in said if line.startswith('mirror_to:')]
    assert 1 <= len(told_of_it) <= 3 and Run(run_of(config)).status['state'] == 'finished'


# -- from float16 to bfloat16 and back

def train_until(step, config, with_scaler, monkeypatch):
    "Train with or without a real gradient scaler, as float16 needs one, and stop at a step."
    from transformers import TrainerCallback
    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step - 1: (run_of(config)/'stop').touch()
    class Scaled:
        def _prepare_for_training(self, *args):
            if with_scaler: self.accelerator.scaler = torch.amp.GradScaler('cpu', init_scale=2.**10)
            return super()._prepare_for_training(*args)
        def _clip_grad_norm(self, model): # accelerate does this where it chose float16 itself
            if with_scaler: self.accelerator.scaler.unscale_(self.optimizer.optimizer)
            return super()._clip_grad_norm(model)
    make_trainer, trainer_class = train.make_trainer, train.trainer_class
    def make(*args):
        trainer = make_trainer(*args)
        trainer.add_callback(Stop())
        return trainer
    with monkeypatch.context() as m:
        m.setattr(train, 'trainer_class', lambda config: type('Trainer', (Scaled, trainer_class(config)), {}))
        m.setattr(train, 'make_trainer', make)
        return finetune(config, say=None)

@pytest.mark.slow
def test_a_scaler_comes_and_goes(tmp_path, monkeypatch):
    config = make(tmp_path, max_steps=6)
    losses = [m['loss'] for m in finetune(load_config(config, output_dir=str(tmp_path/'one')), say=None).metrics
              if 'loss' in m]
    assert train_until(2, config, True, monkeypatch).interrupted
    assert (newest(config)/'scaler.pt').is_file()
    assert train_until(4, config, False, monkeypatch).interrupted
    assert not (newest(config)/'scaler.pt').exists()
    run = train_until(99, config, True, monkeypatch)
    assert [m['loss'] for m in run.metrics if 'loss' in m] == pytest.approx(losses, abs=1e-4)
    assert run.status['state'] == 'finished' and (newest(config)/'scaler.pt').is_file()
