"Runs of two processes, and what starts them."
import json, os, shutil, subprocess, sys
import pytest, torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from llmft import UserError, finetune, load_config
from llmft.config.config import save_config
from llmft.training.arguments import check_distributed
from tests.tiny import alpaca_row, alpaca_rows, save_rows, save_tiny, small_tokenizer, tiny_config

SETTINGS = dict(max_steps=20, logging_steps=1, evals_per_epoch=2, sequence_len=128, adapter='lora', load_in_4bit=False,
    save_steps=5, save_total_limit=9, micro_batch_size=4)
CASES = { # name -> what is different; the batches of rows and of held-out rows are odd in number
    'packed': {}, 'unpacked': dict(sample_packing=False, num_epochs=1.2, max_steps=None),
    'accumulated': dict(gradient_accumulation_steps=3, num_epochs=3.5, max_steps=None)}
SLOW_CASES = {
    'grouped': dict(sample_packing=False, group_by_length=True), 'streamed': dict(streaming=True),
    'streamed_rows': dict(streaming=True, sample_packing=False), 'checkpointed': dict(gradient_checkpointing=True),
    'all_logits': dict(chunked_cross_entropy=False), 'full': dict(adapter='full', learning_rate=1e-3)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('launch')
    save_tiny(folder/'model', tokenizer=small_tokenizer())
    save_rows(folder/'rows.jsonl', alpaca_rows(93))
    save_rows(folder/'test.jsonl', [alpaca_row(i + 1000) for i in range(9)])
    return folder


def config_of(folder, name, **keys):
    test = [{'path': str(folder/'test.jsonl')}]
    return tiny_config(folder/'model', folder/'rows.jsonl', folder/name, **SETTINGS | {'test_datasets': test} | keys)


def write(folder, name, **keys): # -> the YAML file
    save_config(config_of(folder, name, **keys), folder/f'{name}.yml')
    return folder/f'{name}.yml'


def torchrun(*command, n=2, **variables):
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', n, '-m', *command]
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'TQDM_DISABLE': '1'} | variables
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=environment)


def metrics(path): return [json.loads(line) for line in (path/'metrics.jsonl').read_text().splitlines()]


def numbers(path): return [(m['step'], key, m[key]) for m in metrics(path) for key in ('loss', 'eval_loss') if key in m]


def assert_same_run(one, two):
    first, second = numbers(one), numbers(two)
    assert [n[:2] for n in first] == [n[:2] for n in second] # each line once
    assert [n[2] for n in first] == pytest.approx([n[2] for n in second], abs=1e-4)


def forget_after(run, step): # as if the run had been killed some steps later
    (run/'status.json').unlink()
    for checkpoint in (run/'checkpoints').glob('checkpoint-*'):
        if int(checkpoint.name.split('-')[1]) > step: shutil.rmtree(checkpoint)


def adapter_loss(run): # of a text, by the adapter that was saved
    base = AutoModelForCausalLM.from_pretrained(run.parent/'model')
    model, ids = PeftModel.from_pretrained(base, run/'adapter'), torch.arange(3, 40)[None]
    with torch.no_grad(): return model(ids, labels=ids).loss.item()


@pytest.fixture(scope='module')
def both(folder):
    "Each case in one process and in two; with FSDP; and the first one, continued by two, then by one."
    for name, keys in CASES.items(): finetune(config_of(folder, f'{name}-1', **keys), say=None)
    shutil.copytree(folder/'packed-1', folder/'resumed')
    forget_after(folder/'resumed', 5)
    files = [write(folder, f'{name}-2', **keys | {'micro_batch_size': 2}) for name, keys in CASES.items()]
    files += [write(folder, 'sharded', micro_batch_size=2, fsdp=True), f'{write(folder, "resumed")}:resume']
    started = torchrun('tests.training.several', *files, LATE='1:3')
    assert not started.returncode, started.stderr
    forget_after(folder/'resumed', 10)
    said = []
    finetune(folder/'resumed.yml', resume=True, say=lambda text: said.append(str(text)))
    return folder, started.stdout, '\n'.join(said)


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_two_processes_learn_what_one_does(both, name): assert_same_run(both[0]/f'{name}-1', both[0]/f'{name}-2')


@pytest.mark.slow
def test_files_are_written_once(both):
    folder, printed, _ = both
    one, two = (sorted(p.name for p in (folder/f'packed-{n}').iterdir()) for n in (1, 2))
    assert one == two and not [name for name in two if name.startswith('.')]
    assert printed.count('93 rows are used.') == 5 # of five runs, each said it once
    assert (folder/'packed-2'/'samples.md').read_text() == (folder/'packed-1'/'samples.md').read_text()



@pytest.mark.slow
def test_shared_out_weights_are_saved_whole(both):
    folder = both[0]
    assert_same_run(folder/'packed-1', folder/'sharded')
    assert (folder/'sharded'/'checkpoints'/'checkpoint-20'/'pytorch_model_fsdp.bin').is_file() # it was FSDP
    assert adapter_loss(folder/'sharded') == pytest.approx(adapter_loss(folder/'packed-1'), abs=1e-4)


@pytest.mark.slow
def test_another_number_of_processes_goes_on(both):
    folder, printed, said = both
    assert 'The run had 1 process, now there are 2: 2 x 2 x 1 rows make the 4 of a step.' in printed
    assert 'The run had 2 processes, now there is 1: 1 x 4 x 1 rows make the 4 of a step.' in said
    assert_same_run(folder/'packed-1', folder/'resumed')


def test_command(folder):
    "What torchrun starts is the command line; the schedule is counted with both processes."
    file = write(folder, 'command', micro_batch_size=2, max_steps=None, num_epochs=1, sample_packing=False)
    done = torchrun('llmft', 'train', file)
    assert not done.returncode and done.stdout.count('93 rows are used.') == 1
    assert [m['step'] for m in metrics(folder/'command') if 'loss' in m] == list(range(1, 25)) # 93 / (2 x 2)
    assert json.loads((folder/'command'/'environment.json').read_text())['rows_per_step'] == 4


@pytest.mark.slow
def test_one_message_if_a_setting_is_wrong(folder):
    file = folder/'wrong.yml'
    file.write_text((write(folder, 'wrong')).read_text().replace('adamw_torch', 'nope'))
    failed = torchrun('llmft', 'train', file)
    assert failed.returncode == 1 and failed.stderr.count('\nError: ') == 1 and 'exitcode: 2' in failed.stderr
    assert '`optimizer`: there is none called `nope`' in failed.stderr and not (folder/'wrong').exists()
    assert 'UserError' not in failed.stderr


@pytest.mark.slow
@pytest.mark.parametrize('process', [0, 1])
def test_one_message_if_one_process_fails_while_training(folder, process):
    file = write(folder, f'failing{process}', micro_batch_size=2)
    failed = torchrun('tests.training.several', file, FAIL=str(process))
    assert failed.returncode == 1 and failed.stderr.count('Memory ran out while training') == 1
    assert 'Connection closed' not in failed.stderr


@pytest.mark.slow
@pytest.mark.parametrize('name', SLOW_CASES)
def test_other_settings(folder, name):
    keys = SLOW_CASES[name]
    finetune(config_of(folder, f'{name}-1', **keys), say=None)
    done = torchrun('tests.training.several', write(folder, f'{name}-2', **keys | {'micro_batch_size': 2}))
    assert not done.returncode, done.stderr
    assert_same_run(folder/f'{name}-1', folder/f'{name}-2')


@pytest.mark.slow
def test_whole_model_in_parts(folder):
    keys = dict(adapter='full', learning_rate=1e-3)
    finetune(config_of(folder, 'whole', **keys), say=None)
    done = torchrun('tests.training.several', write(folder, 'parts', micro_batch_size=2, fsdp=True, **keys))
    assert not done.returncode, done.stderr
    assert_same_run(folder/'whole', folder/'parts')
    one, two = (load_file(folder/name/'model'/'model.safetensors') for name in ('whole', 'parts'))
    assert one.keys() == two.keys() and all(torch.allclose(one[key], two[key], atol=1e-3) for key in one)


@pytest.mark.slow
def test_ten_starts_with_a_late_process(folder):
    finetune(config_of(folder, 'early', max_steps=4), say=None)
    files = [write(folder, f'late{i}', max_steps=4, micro_batch_size=2) for i in range(10)]
    for i, file in enumerate(files):
        done = torchrun('tests.training.several', file, LATE=f'{i % 2}:3')
        assert not done.returncode, done.stderr
        assert f'process {i % 2} came 3 seconds late' in done.stdout
        assert_same_run(folder/'early', folder/file.stem)


@pytest.mark.slow
def test_start_from_python(folder, capsys):
    said = []
    run = finetune(config_of(folder, 'started', micro_batch_size=2, max_steps=4), num_processes=2, say=said.append)
    assert run.path == folder/'started' and not run.interrupted and run.last('step') == 4
    assert sum('93 rows are used.' in text for text in said) == 1 and not capsys.readouterr().out
    with pytest.raises(UserError, match='exists already'):
        finetune(config_of(folder, 'started', lora_r=3), num_processes=2, say=None)


@pytest.mark.parametrize('keys, message', [
    (dict(fsdp='nope'), '`fsdp`: there is none called `nope`'), (dict(fsdp=['full_shard', 'wrap']), 'called `wrap`'),
    (dict(fsdp_config={'cpu_ofload': True}), 'Did you mean `cpu_offload`'),
    (dict(fsdp_config={'fsdp_state_dict_type': 'NOPE'}), '`fsdp_config`'),
    (dict(deepspeed='nope.json'), 'there is no file nope.json'),
    (dict(deepspeed={'zero_optimization': {'stage': 4}}), 'no stage 4'),
    (dict(deepspeed='zero2', fsdp=True), 'share out the same weights'),
])
def test_settings_of_several_processes_are_checked_in_one(folder, keys, message):
    with pytest.raises(UserError, match=message): check_distributed(config_of(folder, 'unused', **keys))


@pytest.mark.parametrize('text, message', [('[1]', 'holds no settings'), ('{', 'cannot be read')])
def test_broken_files_of_deepspeed(folder, text, message):
    (folder/'zero.json').write_text(text)
    config = config_of(folder, 'x', deepspeed=str(folder/'zero.json'))
    with pytest.raises(UserError, match=message): check_distributed(config)


def test_recipes_are_known_to_accelerate():
    from accelerate.commands.config.config_args import load_config_from_file
    from llmft.config.config import RECIPES_DIR
    found = {p.stem: load_config_from_file(str(p)) for p in RECIPES_DIR.glob('distributed/*.yaml')
             if p.stem in ('ddp', 'fsdp2')} # the others are of other programs
    kinds = {name: str(c.distributed_type).split('.')[-1] for name, c in found.items()}
    assert kinds == {'ddp': 'MULTI_GPU', 'fsdp2': 'FSDP'}
    for name in ('zero2', 'zero3'): check_distributed(load_config({
        'base_model': 'builtin/smollm2-135m', 'datasets': [{'path': 'builtin/python-evol-1k'}], 'adapter': 'lora',
        'deepspeed': name}))


USED_BEFORE = '''
import torch
torch.randn(64, 64) @ torch.randn(64, 64)
from unittest.mock import patch
from llmft import finetune
'''
TRAIN = '''
with patch('llmft.training.watch.Pace.is_due', lambda pace: True): run = finetune({file!r}, num_processes=2)
print(run, run.interrupted)
'''


@pytest.fixture(scope='module')
def kernel():
    from jupyter_client.manager import start_new_kernel
    manager, client = start_new_kernel()
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def execute(kernel, source, interrupt_at=None): # -> (what was printed, messages with a picture); may stop the cell
    manager, client = kernel
    printed, pictures = '', []
    def hear(message):
        nonlocal printed
        kind, content = message['msg_type'], message['content']
        if kind == 'stream': printed += content['text']
        if kind == 'error': printed += f"{content['ename']}: {content['evalue']}"
        if 'image/png' in content.get('data', {}): pictures.append(message)
        if interrupt_at and interrupt_at in printed and not interrupted:
            interrupted.append(True)
            manager.interrupt_kernel()
    interrupted = []
    client.execute_interactive(source, timeout=200, output_hook=hear, allow_stdin=False)
    return printed, pictures


@pytest.mark.slow
def test_window_of_two_processes_in_a_kernel_that_used_torch(folder, kernel):
    execute(kernel, USED_BEFORE)
    file = write(folder, 'cell', micro_batch_size=2, max_steps=6)
    printed, pictures = execute(kernel, TRAIN.format(file=str(file)))
    lines = [line for line in printed.splitlines() if ': loss' in line]
    assert [line.split(':')[0] for line in lines] == [f'step {n}/6' for n in range(1, 7)] and 'tokens/s' in lines[0]
    assert pictures, printed
    assert [m['msg_type'] for m in pictures] == ['display_data'] + ['update_display_data']*(len(pictures) - 1)
    assert len(pictures) >= 6 and len({m['content']['transient']['display_id'] for m in pictures}) == 1
    assert printed.count('93 rows are used.') == 1 and f'run {folder/"cell"}: 6 steps' in printed and 'False' in printed


@pytest.mark.slow
def test_a_cell_that_is_interrupted_stops_both_and_saves(folder, kernel):
    file = write(folder, 'interrupted', micro_batch_size=2, max_steps=3000)
    execute(kernel, USED_BEFORE)
    printed, _ = execute(kernel, TRAIN.format(file=str(file)), interrupt_at='step 3/')
    assert 'Stopping after this step' in printed and printed.strip().endswith('True') and 'Error' not in printed
    step = metrics(folder/'interrupted')[-1]['step']
    assert 3 <= step < 3000 and (folder/'interrupted'/'checkpoints'/f'checkpoint-{step}').is_dir()
    assert (folder/'interrupted'/'adapter').is_dir()


@pytest.mark.slow
def test_a_failure_in_a_cell_is_one_message(folder, kernel):
    execute(kernel, USED_BEFORE)
    printed, _ = execute(kernel, TRAIN.format(file=str(write(folder, 'refused', fsdp='nope'))))
    assert 'UserError: `fsdp`: there is none called `nope`' in printed and not (folder/'refused').exists()
