"A sweep: every combination once, whatever happens meanwhile, and what came out."
import hashlib, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest
import yaml
from llmft import Run, UserError
from llmft.commands.cli import main
from llmft.config.config import load_config, parse_axes
from llmft.training import sweep as module, train
from llmft.training.sweep import Sweep, final_loss, run_names, sweep, sweep_values
from llmft.training.train import finetune
from tests.small import tree
from tests.tiny import alpaca_rows, save_rows, save_tiny, small_tokenizer, tiny_config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sweep')
    save_tiny(folder/'model', tokenizer=small_tokenizer())
    save_rows(folder/'rows.jsonl', alpaca_rows(24))
    return folder


@pytest.fixture
def base(folder, tmp_path):
    return tiny_config(folder/'model', folder/'rows.jsonl', tmp_path/'run', adapter='lora', bf16=False, max_steps=3,
                       val_set_size=4, logging_steps=1, save_steps=1)


def weights(path): return hashlib.sha256((Path(path)/'adapter'/'adapter_model.safetensors').read_bytes()).hexdigest()

def all_weights(made): return [weights(made.path/entry['name']) for entry in made.entries]

def statuses(made): return [entry['status'] for entry in made.entries]

def silent(*args, **kwargs): return sweep(*args, say=None, **kwargs)


# -- what is tried

@pytest.mark.parametrize('items, single, axes', [
    (['lora_r=4,16,64'], {}, {'lora_r': [4, 16, 64]}), (['lora_r=4'], {'lora_r': 4}, {}),
    (['learning_rate=1e-4, 1e-3'], {}, {'learning_rate': [1e-4, 1e-3]}), (['seed='], {'seed': None}, {}),
    (['lora_target_modules=[q_proj,v_proj]'], {'lora_target_modules': ['q_proj', 'v_proj']}, {}),
    (['lora_target_modules=[q_proj],[q_proj,v_proj]'], {}, {'lora_target_modules': [['q_proj'], ['q_proj', 'v_proj']]}),
    (['optim_args="a=1, b=2","a=3"'], {}, {'optim_args': ['a=1, b=2', 'a=3']}),
    (['lr_scheduler_kwargs={a: 1, b: 2}'], {'lr_scheduler_kwargs': {'a': 1, 'b': 2}}, {}),
    (['adapter=lora,full', 'seed=1'], {'seed': 1}, {'adapter': ['lora', 'full']})])
def test_commas_separate_values(items, single, axes): assert parse_axes(items) == (single, axes)


@pytest.mark.parametrize('item', ['lora_r', '=3', 'lora_r=4,,8', 'lora_r=[4', 'lora_r=4]', "seed='1"])
def test_texts_that_are_no_values(item):
    with pytest.raises(UserError, match='KEY=VALUE|not valid YAML') as e: parse_axes([item])
    assert '[[' not in str(e.value) and '=[' not in str(e.value).replace(item, '')


@pytest.mark.parametrize('values, message', [
    (dict(lora_rr=[4, 8]), 'Did you mean `lora_r`'), (dict(lora_r=[4, 'many']), 'set lora_r=many: `lora_r` must be'),
    (dict(lora_r=[0, 4]), 'must be above 0'), (dict(lora_r=[4, 4]), 'would be the same one'),
    (dict(learning_rate=[1e-4, '1e-4']), 'would be the same one'), (dict(lora_r=8), 'needs a list of values'),
    (dict(lora_r=[]), 'needs a list of values'), (dict(adapter='lora'), 'needs a list of values'),
    (dict(output_dir=['a', 'b']), 'folder of its own'), (dict(logging_steps=[1, 2]), 'not what is learned'),
    (dict(wandb_project=['a', 'b']), 'who is told'), (dict(sample_prompts=[1, 2]), 'changes nothing'),
    (dict(val_set_size=[4, 8]), 'held-out rows'), (dict(sweep=[1, 2]), 'is none'), ({}, 'which values are tried'),
    (dict(optimizer=['adamw_torch', 'fastest']), 'optimizer=fastest: .*no.*fastest'),
    (dict(lr_scheduler=['cosine', 'cosin']), 'Did you mean `cosine`'),
    (dict(adapter=['lora', 'qlora'], load_in_8bit=[True]), 'qlora'),
    (dict(seed=[*range(200)], lora_r=[*range(1, 200)]), '39,800 runs'),
    (dict(datasets=[[{'path': 'a.jsonl'}], [{'path': 'b.jsonl'}]]), 'a.jsonl')], ids=str)
def test_one_message_before_anything_runs(base, tmp_path, values, message):
    before = tree(tmp_path)
    with pytest.raises(UserError, match=message): silent(base, tmp_path/'sweep', **values)
    assert tree(tmp_path) == before


def test_all_mistakes_at_once(base, tmp_path):
    with pytest.raises(UserError) as e: silent(base, tmp_path/'sweep', lora_r=[0, 4], learning_rate=['fast', 1e-4, 7])
    lines = str(e.value).splitlines()
    assert {line.split(':')[0] for line in lines} == {'set lora_r=0', 'set learning_rate=fast', 'set learning_rate=7'}
    assert len(lines) == 3


@pytest.mark.parametrize('listed, message', [
    ({'lora_r': 4}, 'lists of values'), ({'lora_r': []}, 'lists of values'),
    ([4], 'list of runs'), ([{}], 'list of runs'),
    ('lora_r', 'must be a mapping')])
def test_wrong_blocks_in_the_file(base, listed, message):
    with pytest.raises(UserError, match=message): load_config(base, sweep=listed)


def test_names_are_readable_and_each_once():
    values = ({'lora_r': 4, 'learning_rate': 1e-4}, {'base_model': '/a/b c'}, {'base_model': '/a/b/c'},
              {'lora_target_modules': ['q_proj']}, {'tokens': ['x'*300]}, {'optimizer': 'ö'})
    assert run_names(values) == ['lora_r=4,learning_rate=0.0001', 'base_model=a_b_c', 'base_model=a_b_c,3',
                                 'lora_target_modules=q_proj', f'tokens={"x"*40}', 'optimizer=']


def test_what_the_shell_sets_replaces_what_the_file_tries(base, tmp_path, monkeypatch, capsys):
    file, asked = tmp_path/'run.yml', []
    text = base.model_dump(exclude_unset=True) | {'sweep': {'lora_r': [2, 4], 'seed': [1, 2]}}
    file.write_text(yaml.safe_dump(text))
    monkeypatch.setattr(module, 'sweep', lambda config, out, **k: asked.append(
        sweep_values(config, {key: v for key, v in k.items() if key not in ('say', 'force')})) or Sweep(tmp_path))
    for items in (['seed=7', 'max_steps=2'], ['lora_r=8,16', 'seed=3']):
        main_exit(['sweep', str(file), *(part for item in items for part in ('--set', item))])
    assert asked == [[{'lora_r': 2, 'seed': 7}, {'lora_r': 4, 'seed': 7}],
                     [{'lora_r': 8, 'seed': 3}, {'lora_r': 16, 'seed': 3}]]
    file.write_text(yaml.safe_dump(text | {'sweep': [{'lora_r': 2}, {'lora_r': 4}]}))
    main_exit(['sweep', str(file), '--set', 'lora_r=8'], 2)
    assert 'lists its runs' in capsys.readouterr().err


def main_exit(args, status=0):
    with pytest.raises(SystemExit) as e: main(args)
    assert (e.value.code or 0) == status


# -- a sweep

@pytest.mark.slow
def test_each_run_is_the_one_that_train_would_make(base, tmp_path, monkeypatch):
    prepared = []
    original = module.prepare_data
    monkeypatch.setattr(module, 'prepare_data', lambda config: prepared.append(1) or original(config))
    made = silent(base, tmp_path/'sweep', lora_r=[2, 4], learning_rate=[1e-3, 1e-2])
    assert statuses(made) == ['finished']*4 and prepared == [1]
    alone = finetune(load_config(base, lora_r=4, learning_rate=1e-3), say=None)
    assert weights(alone.path) == weights(tmp_path/'sweep'/'lora_r=4,learning_rate=0.001')
    losses = dict(zip((e['name'] for e in made.entries), made.losses()))
    assert made.best['name'] == min(losses, key=losses.get) and final_loss(alone) in losses.values()
    assert {p.name for p in made.path.iterdir()} == {*losses, 'sweep.json', 'base.yml', 'sweep.png', 'README.md'}
    text = str(made)
    assert '(best)' in text and f'llmft chat {made.path/made.best["name"]}' in text
    assert '](data:image/png;base64,' in made._repr_markdown_()
    assert '](sweep.png)' in (made.path/'README.md').read_text()
    assert len(made.compare().runs) == 4 and not [*made.path.glob('*/samples.md')]


@pytest.mark.slow
def test_other_data_are_prepared_again_and_runs_are_grouped(base, tmp_path, monkeypatch):
    prepared, original = [], module.prepare_data
    monkeypatch.setattr(module, 'prepare_data', lambda c: prepared.append(c.sequence_len) or original(c))
    made = silent(base, tmp_path/'sweep', lora_r=[2, 4], sequence_len=[128, 256])
    assert prepared == [128, 256] and statuses(made) == ['finished']*4


@pytest.mark.slow
def test_data_that_one_value_makes_useless_are_a_run_that_failed(base, tmp_path):
    made = silent(base, tmp_path/'sweep', sequence_len=[256, 8])
    assert statuses(made) == ['finished', 'failed'] and not (made.path/'sequence_len=8').exists()


@pytest.mark.slow
def test_runs_that_are_listed(base, tmp_path):
    config = load_config(base, sweep=[{'lora_r': 2}, {'lora_r': 4, 'lora_alpha': 4}], max_steps=1)
    made = silent(config, tmp_path/'sweep')
    assert [e['name'] for e in made.entries] == ['lora_r=2', 'lora_r=4,lora_alpha=4']
    assert made.plot().axes and [row[0] for row in made.table().rows if row[1] == '4'] == ['4']


def test_one_that_fails_is_noted_and_the_others_go_on(base, tmp_path):
    base = load_config(base, lr_scheduler='constant', warmup_steps=0, max_steps=8) # so much decay ends in infinity
    said, again, tried = [], [], dict(weight_decay=[4e9, 0])
    made = sweep(base, tmp_path/'sweep', say=lambda x: said.append(str(x)), **tried)
    assert statuses(made) == ['failed', 'finished'] and 'nan' in made.entries[0]['message']
    assert any(line.startswith('  failed: ') for line in said) and '4000000000.0 failed: the ' in said[-1]
    assert made.best['values']['weight_decay'] == 0 and 'failed' in str(made.table())
    made = sweep(base, tmp_path/'sweep', say=lambda x: again.append(str(x)), **tried)
    assert not [line for line in again if line.startswith('run ')] and statuses(made) == ['failed', 'finished']
    shutil.rmtree(tmp_path/'sweep'/made.entries[0]['name'])
    made = sweep(base, tmp_path/'sweep', say=lambda x: again.append(str(x)), **tried)
    assert len([line for line in again if line.startswith('run ')]) == 1 and statuses(made) == ['failed', 'finished']


@pytest.mark.slow
def test_an_error_of_a_library_does_not_end_the_sweep(base, tmp_path, monkeypatch):
    original = module.finetune
    def fail(config, **kwargs):
        if config.lora_r == 2: raise RuntimeError('no kernel image')
        return original(config, **kwargs)
    monkeypatch.setattr(module, 'finetune', fail)
    made = silent(base, tmp_path/'sweep', lora_r=[2, 4])
    assert [e.get('message') for e in made.entries] == ['RuntimeError: no kernel image', None]
    monkeypatch.undo() # it left no folder, so it is tried again
    assert statuses(silent(base, tmp_path/'sweep', lora_r=[2, 4])) == ['finished']*2


@pytest.mark.slow
def test_training_loss_where_nothing_is_held_out(base, tmp_path):
    made = silent(load_config(base, val_set_size=0), tmp_path/'sweep', lora_r=[2, 4])
    assert 'training loss' in made.table().header and any('by heart' in note for note in made.notes())


@pytest.mark.parametrize('best, tried, word', [(4, [4, 8], 'smaller'), (8, [4, 8], 'larger'), (8, [4, 8, 16], None),
                                               ('lora', ['lora', 'full'], None), (True, [True, False], None)])
def test_best_at_the_edge(best, tried, word):
    notes = [*module._edge_notes([{'values': {'key': value}} for value in tried], {'values': {'key': best}})]
    assert len(notes) == (word is not None) and (not word or f'A {word} one' in notes[0])


# -- going on

class Killed(BaseException): pass


@pytest.fixture(scope='module')
def whole(folder): # a sweep that was never stopped
    config = tiny_config(folder/'model', folder/'rows.jsonl', folder/'run', adapter='lora', bf16=False, max_steps=3,
                         val_set_size=4, logging_steps=1, save_steps=1)
    return silent(config, folder/'whole', lora_r=[2, 4, 8])


@pytest.mark.slow
@pytest.mark.parametrize('run, step', [(0, 1), (1, 2), (2, 3)])
def test_goes_on_as_if_never_stopped(base, whole, tmp_path, monkeypatch, run, step):
    started = []
    def die(self, args, state, control, **kwargs):
        self.bar.update(1)
        if state.global_step == 1: started.append(1)
        if len(started) == run + 1 and state.global_step == step: raise Killed
    with monkeypatch.context() as m:
        m.setattr(train.Progress, 'on_step_end', die)
        with pytest.raises(Killed): silent(base, tmp_path/'sweep', lora_r=[2, 4, 8])
    assert statuses(Sweep(tmp_path/'sweep')) == ['finished']*run + ['waiting']*(3 - run)
    said = []
    made = sweep(base, tmp_path/'sweep', say=lambda x: said.append(str(x)), lora_r=[2, 4, 8])
    assert [line for line in said if line.startswith('run ')][0].startswith(f'run {run + 1} of 3')
    assert all_weights(made) == all_weights(whole)
    assert made.losses() == whole.losses()


@pytest.mark.slow
def test_killed_at_random_moments(base, tmp_path):
    "SIGKILL, again and again, while the command does whatever it does."
    base = load_config(base, max_steps=6, save_total_limit=9)
    file = tmp_path/'run.yml'
    file.write_text(yaml.safe_dump(base.model_dump(exclude_unset=True)))
    command = [sys.executable, '-m', 'llmft', 'sweep', str(file), '--set', 'lora_r=2,4', '--out', str(tmp_path/'sweep')]
    for marker in ('sweep.json', 'base.yml', 'lora_r=2/checkpoints/checkpoint-2', 'lora_r=2/README.md',
                   'lora_r=4/data.json'):
        process = subprocess.Popen(command, env=os.environ | {'TQDM_DISABLE': '1'}, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        while process.poll() is None and not (tmp_path/'sweep'/marker).exists(): time.sleep(.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path/'sweep'/marker).exists()
    made = silent(base, tmp_path/'sweep', lora_r=[2, 4])
    whole = silent(base, tmp_path/'whole', lora_r=[2, 4])
    assert statuses(made) == ['finished']*2 and made.losses() == whole.losses()
    assert all_weights(made) == all_weights(whole)


@pytest.mark.slow
def test_ctrl_c_stops_the_sweep_and_is_gone_on_with(base, whole, tmp_path, monkeypatch):
    original = train.Progress.on_step_end
    def stop(self, args, state, control, **kwargs):
        if state.global_step == 2: self.stop_requested = True
        return original(self, args, state, control, **kwargs)
    with monkeypatch.context() as m:
        m.setattr(train.Progress, 'on_step_end', stop)
        made = silent(base, tmp_path/'sweep', lora_r=[2, 4])
    assert made.interrupted and statuses(made) == ['waiting']*2 and '2 of 2 runs are still to be made' in str(made)
    made = silent(base, tmp_path/'sweep', lora_r=[2, 4])
    assert statuses(made) == ['finished']*2 and not made.interrupted
    assert weights(made.path/'lora_r=2') == weights(whole.path/'lora_r=2')


@pytest.mark.parametrize('keys, values, message', [
    (dict(max_steps=4), {}, '`max_steps` was 1 and is 4'),
    pytest.param(dict(seed=3), {}, '`seed` was 42 and is 3', marks=pytest.mark.slow),
    ({}, dict(lora_r=[2, 8]), 'were|was started with other values: lora_r: 2, 4. Now they are lora_r: 2, 8'),
    pytest.param({}, dict(lora_r=[2]), 'Now they are lora_r: 2', marks=pytest.mark.slow),
    pytest.param({}, dict(learning_rate=[1e-3, 1e-2]), 'Now they are learning_rate', marks=pytest.mark.slow)])
def test_another_sweep_in_the_same_folder(base, tmp_path, keys, values, message):
    base = load_config(base, max_steps=1)
    silent(base, tmp_path/'sweep', lora_r=[2, 4])
    before = tree(tmp_path/'sweep')
    with pytest.raises(UserError, match=message):
        silent(load_config(base, **keys), tmp_path/'sweep', **values or dict(lora_r=[2, 4]))
    assert tree(tmp_path/'sweep') == before


@pytest.mark.slow
def test_values_can_be_added(base, tmp_path):
    base = load_config(base, max_steps=1)
    first = silent(base, tmp_path/'sweep', lora_r=[2, 4])
    old = {e['name']: weights(first.path/e['name']) for e in first.entries}
    said = []
    made = sweep(base, tmp_path/'sweep', say=lambda x: said.append(str(x)), lora_r=[8, 2, 4])
    assert [e['name'] for e in made.entries] == ['lora_r=8', 'lora_r=2', 'lora_r=4']
    assert '2 of 3 runs were made before.' in said
    assert {name: weights(made.path/name) for name in old} == old


def test_a_broken_list_of_runs(base, tmp_path):
    silent(load_config(base, max_steps=1), tmp_path/'sweep', lora_r=[2, 4])
    for content in (b'', b'\0'*20, b'[]', b'{"runs": 3}', b'{"runs": [{"name": 1}]}'):
        (tmp_path/'sweep'/'sweep.json').write_bytes(content)
        with pytest.raises(UserError, match='sweep.json cannot be read'):
            silent(load_config(base, max_steps=1), tmp_path/'sweep', lora_r=[2, 4])


def test_folders_that_are_no_sweep(base, tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('years of work')
    (tmp_path/'file').write_text('')
    for name, message in (('mine', 'not the folder of a sweep'), ('file', 'not a folder|is not')):
        with pytest.raises(UserError, match=message): silent(base, tmp_path/name, lora_r=[2, 4])
    assert tree(tmp_path/'mine').keys() == {str(tmp_path/'mine'/'thesis.txt')}


def test_train_does_not_take_a_sweep_for_a_run(base, tmp_path):
    with pytest.raises(UserError, match='llmft sweep'): finetune(load_config(base, sweep={'lora_r': [2, 4]}), say=None)
    assert not (tmp_path/'run').exists()
