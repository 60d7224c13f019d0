"""What is wrong beside the data (that is in test_bad_data): one message that says what, where and what to do, status 2,
nothing written."""
import os, re, subprocess, sys
from pathlib import Path

import pytest

from llmft.commands.cli import main
from tests.bad_data import BASE, ROWS

RUN = BASE.replace('datasets:', 'adapter: lora\ndatasets:')


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    "Each test works in a folder of its own, with eight good rows and a good description of a run."
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('HF_HUB_OFFLINE', raising=False)
    Path('data.jsonl').write_text(ROWS)
    Path('run.yml').write_text(RUN)
    return tmp_path


def tree(): return {str(p): p.read_bytes() if p.is_file() else None for p in Path('.').rglob('*')}


@pytest.fixture
def wrong(capsys):
    "Run a command that must fail; the message."
    def run(*args):
        before = tree()
        with pytest.raises(SystemExit) as e: main([str(a) for a in args])
        err = capsys.readouterr().err
        assert e.value.code == 2, err
        assert 'Traceback' not in err and err.count('Error: ') == 1, err
        assert tree() == before, 'something was written'
        return err[err.index('Error: ') + 7:].strip()
    return run


@pytest.fixture
def no_training(monkeypatch):
    "The weights are never read: a mistake must show before that."
    def load(*_, **__): raise AssertionError('the model was loaded')
    monkeypatch.setattr('llmft.training.train.load_base', load)


def says(message, *parts):
    for part in parts: assert part in message, message
    assert 'pydantic' not in message and 'input should be' not in message.lower(), message


# the description of a run

VALUES = {
    'micro_batch_size: many': "`micro_batch_size` must be a whole number, not 'many'.",
    'micro_batch_size: 1.5': '`micro_batch_size` must be a whole number, not 1.5.',
    'micro_batch_size: 0': '`micro_batch_size` must be above 0, not 0.',
    'micro_batch_size: -1': '`micro_batch_size` must be above 0, not -1.',
    'micro_batch_size: true': "`micro_batch_size` must be a whole number, not 'true'.",
    'num_epochs: true': "`num_epochs` must be a number, not 'true'.",
    'num_epochs: [1]': '`num_epochs` must be a number, not [1].',
    'num_epochs: 0': '`num_epochs` must be above 0, not 0.',
    'lora_r: 0': '`lora_r` must be above 0, not 0.',
    'lora_alpha: -2': '`lora_alpha` must be above 0, not -2.',
    'lora_dropout: 1': '`lora_dropout` must be below 1, not 1.',
    'sequence_len: 0': '`sequence_len` must be at least 8, not 0.',
    'max_steps: 0': '`max_steps` must be above 0, not 0.',
    'learning_rate: 50': '`learning_rate` must be at most 1, not 50.',
    'learning_rate: .nan': '`learning_rate` must be a finite number, not nan.',
    'lora_alpha: .inf': '`lora_alpha` must be a finite number, not inf.',
    'max_grad_norm: -.inf': '`max_grad_norm` must be a finite number, not -inf.',
    'val_set_size: .nan': '`val_set_size` must be a finite number, not nan.',
    'val_set_size: -0.1': '`val_set_size` must be at least 0, not -0.1.',
    'val_set_size: 1.5': '`val_set_size`: above 1 it is a number of rows and must be whole.',
    'val_set_size: 1': '`val_set_size`: 1 would hold out everything.',
    'seed: 2001-01-01': '`seed` must be a whole number, not 2001-01-01.',
    'load_in_8bit: maybe': "`load_in_8bit` must be true or false, not 'maybe'.",
    'bf16: perhaps': "`bf16` must be true or false or 'auto', not 'perhaps'.",
    'adapter: qlra': "`adapter` must be 'qlora', 'lora' or 'full', not 'qlra'. Did you mean `qlora`?",
    'report_to: wandb': "`report_to` must be a list, as `[wandb]`, not 'wandb'.",
    'lora_target_modules: 3': '`lora_target_modules` must be text or a list, not 3.',
    'lora_target_modules: [q_proj, 3]': 'entry 2 of `lora_target_modules` must be text, not 3.',
    'load_in_8bit: true\nload_in_4bit: true':
        '`load_in_8bit`: the base weights can be kept in 4 bits or in 8, not both.',
    'load_in_8bit: true\nadapter: qlora':
        '`adapter`: `qlora` means 4-bit base weights. Remove `load_in_8bit`, or set `adapter: lora`.',
    'adapter: qlora\nload_in_4bit: false':
        '`adapter`: `qlora` means 4-bit base weights. Remove `load_in_4bit: false`, or set `adapter: lora`.',
    'bf16: true\nfp16: true': '`fp16`: one number format at a time.',
    'warmup_steps: 1\nwarmup_ratio: 0.1': '`warmup_ratio`: two lengths for one warm-up.',
    'eval_steps: 1\nevals_per_epoch: 1': '`eval_steps`: two rhythms for one thing.',
    'save_steps: 1\nsaves_per_epoch: 1': '`save_steps`: two rhythms for one thing.',
    'lora_target_linear: false': '`lora_target_linear`: nothing would be trained.',
    'val_set_size: 2\ntest_datasets: [{path: data.jsonl}]':
        '`val_set_size`: held-out rows come from `test_datasets` or from `val_set_size`, not both.',
}


@pytest.mark.parametrize('text', VALUES)
def test_value(text, wrong):
    replaced = re.findall(r'^\w+', text, re.M)
    before = ''.join(line for line in BASE.splitlines(keepends=True) if line.split(':')[0] not in replaced)
    Path('run.yml').write_text(before + text + '\n')
    message, count = wrong('train', 'run.yml'), before.count('\n')
    says(message, VALUES[text])
    assert int(re.match(r'run\.yml:(\d+): ', message)[1]) in range(count + 1, count + 2 + text.count('\n')), message
    assert message.count('\n') == 0, message


def test_all_mistakes_at_once(wrong):
    Path('run.yml').write_text(BASE + 'lora_rank: 3\nseed: many\nlora_r: 0\n')
    lines = wrong('check', 'run.yml').splitlines()
    assert [line.split(': ')[0] for line in lines] == ['run.yml:6', 'run.yml:7', 'run.yml:8']


def test_eight_bits_alone_is_right():
    from llmft.config.config import load_config
    Path('run.yml').write_text(BASE + 'load_in_8bit: true\n')
    config = load_config('run.yml')
    assert (config.adapter, config.load_in_4bit, config.load_in_8bit) == ('lora', False, True)


def test_file(wrong):
    says(wrong('train', 'runn.yml'), 'runn.yml: there is no such file and no recipe of that name',
        'Did you mean `run.yml`?', 'smollm2-135m')
    says(wrong('train', 'nowhere/else.yml'), 'nowhere/else.yml: there is no such file')
    says(wrong('check', '.'), '. is a folder', 'Name the YAML file in it')
    for command in ('train', 'check', 'preview', 'recipes'):
        says(wrong(command, 'smolm2-135m'), 'Did you mean `smollm2-135m`?')


@pytest.mark.parametrize('item, part', {
    'seed': 'expected KEY=VALUE, as in learning_rate=1e-4', '=3': 'expected KEY=VALUE',
    'sed=3': '`sed` is not a key that llmft knows. Did you mean `seed`?', 'seed=[1': 'the value is not valid YAML',
    'seed=2001-13-41': 'the value is not valid YAML',
    'seed=abc': "set seed=abc: `seed` must be a whole number, not 'abc'.",
    'learning_rate=nan': "`learning_rate` must be a finite number, not 'nan'",
    'datasets={path: a}': '`datasets` must be a list', 'datasets=[{pth: a}]': 'set datasets=',
    'lora_r=0': '`lora_r` must be above 0, not 0.'}.items())
def test_set(item, part, wrong):
    for command in ('train', 'check', 'preview'): says(wrong(command, 'run.yml', '--set', item), part)


# what transformers and peft would refuse late

@pytest.mark.parametrize('item, parts', {
    'optimizer=adamw_torh': ['`optimizer`: there is none called `adamw_torh`', 'Did you mean `adamw_torch`?'],
    'optimizer=adamw_torch_xla': ['`optimizer`: `adamw_torch_xla` cannot be used here', 'TPUs'],
    'optimizer=lomo': ['`optimizer`: `lomo` cannot be used here'],
    'lr_scheduler=cosin': ['`lr_scheduler`: there is none called `cosin`', 'Did you mean `cosine`?'],
    'lr_scheduler=warmup_stable_decay': ['`lr_scheduler`: `warmup_stable_decay` cannot be used', 'num_decay_steps'],
    'lr_scheduler=reduce_lr_on_plateau': ['`lr_scheduler`: `reduce_lr_on_plateau` cannot be used',
        'it looks at the held-out loss'],
    'report_to=[wandbb]': ['`report_to`: there is none called `wandbb`', 'Did you mean `wandb`?'],
    'report_to=[dvclive]': ['`report_to`: the package of `dvclive` is not installed', 'pip install dvclive'],
    'chat_template=my.jinja': ['chat_template: my.jinja cannot be read', 'No such file'],
}.items())
def test_late(item, parts, wrong, no_training, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    for command in ('train', 'check'): says(wrong(command, 'run.yml', '--set', item), *parts)


@pytest.mark.parametrize('item, parts', {
    'lora_target_modules=[qproj]': ['lora_target_modules: this model has no layer called `qproj`',
        'Did you mean `q_proj`?'],
    'lora_target_modules=xx.*': ["lora_target_modules: no layer has a name that fits 'xx.*'", 'model.layers.0.'],
    'lora_target_modules=xx(*': ["lora_target_modules: 'xx(*' is not a regular expression"],
    'lora_modules_to_save=[embed_tokns]': ['lora_modules_to_save: this model has no layer called `embed_tokns`',
        'Did you mean `embed_tokens`?'],
}.items())
def test_layers(item, parts, wrong, monkeypatch):
    from llmft.commands.check import init_empty_model
    monkeypatch.setattr('llmft.training.train.load_base', lambda config, hw: init_empty_model(config)) # no weights
    for command in ('train', 'check'): says(wrong(command, 'run.yml', '--set', item), *parts)


def test_model(wrong):
    Path('mm').mkdir()
    Path('mm/x.txt').write_text('')
    says(wrong('train', 'run.yml', '--set', 'base_model=./mm'),
        'base_model: the folder mm has no config.json and no weights', 'It has: x.txt')
    says(wrong('train', 'run.yml', '--set', 'base_model=./nowhere'), 'base_model: there is no folder',
        'nowhere. Check the path.')
    says(wrong('train', 'run.yml', '--set', 'base_model=builtin/smolm2'), "no built-in model 'smolm2'",
        'Did you mean builtin/smollm2-135m?')


# where it is written

def test_output(wrong, no_training):
    Path('out').mkdir()
    Path('out/mine.txt').write_text('dear')
    says(wrong('train', 'run.yml'), 'output_dir: out exists already', '--out', 'an empty one')
    says(wrong('train', 'run.yml', '--resume'), 'out is not the folder of a run', 'without --resume')
    says(wrong('train', 'run.yml', '--resume', '--out', 'new'), 'new', '--resume')
    says(wrong('train', 'run.yml', '--out', 'data.jsonl/run'), 'output_dir: data.jsonl/run cannot be written',
        'is not a folder', '--out')
    says(wrong('check', 'run.yml', '--set', 'output_dir=data.jsonl/run'),
        'output_dir: data.jsonl/run cannot be written')


@pytest.mark.skipif(os.name != 'posix' or os.getuid() == 0, reason='root may write everywhere')
def test_output_read_only(folder, wrong, no_training):
    (folder/'locked').mkdir(mode=0o500)
    try:
        message = wrong('train', 'run.yml', '--out', 'locked/run')
        says(message, 'output_dir: locked/run cannot be written', 'read-only', '--out')
    finally: (folder/'locked').chmod(0o700)


# after training

@pytest.mark.parametrize('command',
    [['chat', 'RUN'], ['generate', 'RUN', '-p', 'x'], ['score', 'RUN', '--run-code'], ['merge', 'RUN', 'merged']],
    ids=lambda c: c[0])
def test_no_run(command, wrong):
    Path('other').mkdir()
    Path('other/hello.txt').write_text('')
    def ask(run): return wrong(*(run if a == 'RUN' else a for a in command))
    says(ask('nowhere'), 'nowhere: there is no such folder')
    says(ask('other'), 'other: this is not a run folder of llmft', 'It holds: hello.txt')
    says(ask('data.jsonl'), 'data.jsonl: this is a file', 'run folder')


def unfinished(): # a run folder without adapter
    from llmft.config.config import load_config, save_config
    save_config(load_config('run.yml'), 'out/config_completed.yml')


@pytest.mark.parametrize('command', [['chat', 'out'], ['generate', 'out', '-p', 'x'], ['merge', 'out', 'merged']],
    ids=lambda c: c[0])
def test_no_adapter(command, wrong, no_training):
    unfinished()
    says(wrong(*command), 'out', 'no adapter', 'stopped before it could be saved')


QUESTIONS = {
    'missing': ('no.jsonl', None, 'no.jsonl: there is no such file'),
    'broken': ('q.jsonl', '{"instruction": "a"}\n{"instruction"\n', 'q.jsonl:2: this is not valid JSON'),
    'number': ('q.jsonl', '{"instruction": "a"}\n\n3\n', 'q.jsonl:3: a row must be an object'),
    'empty': ('q.txt', '\n\n', 'q.txt: the file holds nothing but blank lines'),
    'encoding': ('q.txt', 'a\nü\n'.encode('latin-1'), 'q.txt:2: this is not UTF-8 text'),
    'column': ('q.jsonl', '{"question": "a"}\n',
        'q.jsonl: a question of `type: alpaca` needs `instruction`; one row has `question`'),
}


@pytest.mark.parametrize('name', QUESTIONS)
def test_questions(name, wrong):
    file, content, part = QUESTIONS[name]
    unfinished()
    if content is not None: Path(file).write_bytes(content if isinstance(content, bytes) else content.encode())
    says(wrong('generate', 'out', file), part)


def test_no_question(wrong):
    unfinished()
    says(wrong('generate', 'out'), 'there is no question', '-p')
    says(wrong('generate', 'out', '-p', ' '), 'there is no question')


# the Hub

@pytest.fixture
def hub_raises(monkeypatch):
    "The Hub answers, and the libraries raise what they raise then."
    import httpx, huggingface_hub.errors as errors
    monkeypatch.setattr('llmft.hub._hub_unreachable', lambda *_: None)
    def arrange(where, kind, url, wrap):
        request = httpx.Request('GET', url)
        def load(*_, **__):
            try: raise getattr(errors, kind)('403 Client Error', response=httpx.Response(403, request=request))
            except Exception as e: raise wrap('see the cause') from e
        monkeypatch.setattr(where, load)
    return arrange


@pytest.mark.parametrize('kind, parts', {
    'GatedRepoError': ['Access to me/model must be granted first', 'https://huggingface.co/me/model', 'hf auth login'],
    'RepositoryNotFoundError': ['The Hub has no model me/model', 'Check the spelling', './me/model']}.items())
def test_hub_model(kind, parts, wrong, hub_raises):
    for function in ('AutoTokenizer.from_pretrained', 'PretrainedConfig.get_config_dict'):
        hub_raises(f'transformers.{function}', kind, 'https://huggingface.co/me/model', OSError)
    for command in ('train', 'check', 'preview'):
        says(wrong(command, 'run.yml', '--set', 'base_model=me/model'), *parts)


@pytest.mark.parametrize('kind, parts', {
    'GatedRepoError': ['Access to me/data must be granted first', 'https://huggingface.co/datasets/me/data'],
    'RepositoryNotFoundError': ['The Hub has no data set me/data', 'Check the spelling']}.items())
def test_hub_data(kind, parts, wrong, hub_raises):
    from datasets.exceptions import DatasetNotFoundError
    hub_raises('datasets.load_dataset', kind, 'https://huggingface.co/datasets/me/data', DatasetNotFoundError)
    says(wrong('train', 'run.yml', '--set', 'datasets=[{path: me/data}]'), *parts)


# the same from a shell: status, one message, nothing written, no waiting

def shell(*args, **env):
    before = tree()
    run = subprocess.run([sys.executable, '-c', 'from llmft.commands.cli import main; main()', *args],
        capture_output=True, text=True, env=os.environ | env)
    assert 'Traceback' not in run.stderr, run.stderr
    return run, tree() == before


def test_shell():
    run, same = shell('train', 'run.yml', '--set', 'lora_r=0')
    assert (run.returncode, run.stdout, same) == (2, '', True)
    assert run.stderr == 'reading run.yml…\nError: set lora_r=0: `lora_r` must be above 0, not 0.\n'
    Path('data.jsonl').write_text(ROWS + '{"a')
    run, same = shell('train', 'run.yml')
    assert run.returncode == 2 and same
    lines = [line for line in run.stderr.splitlines() if line.strip() and 'Generating' not in line]
    assert lines[-1] == 'Error: data.jsonl:9: this is not valid JSON: Unterminated string starting at character 2.'
    assert not [line for line in lines[:-1] if not line.endswith('…')]


NO_CONNECTION = ('No connection to the Hugging Face Hub, and files of {} are missing from the cache of this machine. '
    'Check the network')


def test_no_network(tmp_path):
    run, same = shell('train', 'run.yml', '--set', 'base_model=me/model', HF_ENDPOINT='http://127.0.0.1:9',
        HF_HOME=str(tmp_path.parent/'hf'))
    assert run.returncode == 2 and same
    says(run.stderr, 'Error: ' + NO_CONNECTION.format('me/model'))
    assert 'Retrying' not in run.stderr and 'Offline mode' not in run.stderr, run.stderr


@pytest.mark.parametrize('item, name', [('base_model=me/model', 'me/model'), ('datasets=[{path: me/data}]', 'me/data')])
def test_no_network_no_waiting(item, name, wrong, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    def sleep(seconds): raise AssertionError('it waits for the Hub')
    monkeypatch.setattr('time.sleep', sleep)
    says(wrong('train', 'run.yml', '--set', item), NO_CONNECTION.format(name))
    assert not constants.is_offline_mode() # it was on meanwhile


@pytest.mark.parametrize('item, name', [('base_model=me/model', 'me/model'), ('datasets=[{path: me/data}]', 'me/data')])
def test_offline_is_respected(item, name, wrong, monkeypatch):
    import datasets.config
    from huggingface_hub import constants
    for module in (constants, datasets.config): monkeypatch.setattr(module, 'HF_HUB_OFFLINE', True)
    def ask(*_): raise AssertionError('the Hub was asked')
    monkeypatch.setattr('llmft.hub._hub_unreachable', ask)
    says(wrong('train', 'run.yml', '--set', item),
        f'Offline mode is on (HF_HUB_OFFLINE), and files of {name} are missing')
    assert constants.is_offline_mode()


def test_cached_model_needs_no_network(tmp_path):
    from llmft.hub import fetch_builtin
    sha, repo = '0' * 40, tmp_path.parent/'hf-cached'/'hub'/'models--me--model'
    (repo/'refs').mkdir(parents=True)
    (repo/'refs'/'main').write_text(sha)
    (repo/'snapshots').mkdir()
    (repo/'snapshots'/sha).symlink_to(fetch_builtin(), target_is_directory=True)
    run, _ = shell('check', 'run.yml', '--set', 'base_model=me/model', HF_ENDPOINT='http://127.0.0.1:9',
        HF_HOME=str(repo.parent.parent))
    assert run.returncode == 0, run.stderr
    assert 'model: me/model, 135 million weights' in run.stdout
    assert 'Retrying' not in run.stderr


def test_interrupted_before_training(monkeypatch, capsys):
    def stop(*_, **__): raise KeyboardInterrupt
    monkeypatch.setattr('llmft.training.train.load_base', stop)
    before = tree()
    with pytest.raises(SystemExit) as e: main(['train', 'run.yml'])
    assert e.value.code == 130
    assert capsys.readouterr().err.endswith('\nInterrupted.\n')
    assert tree() == before
