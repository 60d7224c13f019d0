"Every command of `llmft`, as a person uses them one after the other."
import io, json, subprocess, sys, sysconfig
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmft.commands.cli import app, main
from llmft.config.config import list_recipes, load_config, save_config
from tests.tiny import save_tiny, small_tokenizer

COMMANDS = 'demo train check preview chat generate score merge compare recipes sweep find-lr'.split()


@pytest.fixture
def llmft(capsys):
    "Run a command that must succeed (or end with `status`); its output."
    def run(*args, status=0):
        with pytest.raises(SystemExit) as e: main([str(a) for a in args])
        out, err = capsys.readouterr()
        assert (e.value.code or 0) == status, err
        return out if status == 0 else err
    return run


def test_help(llmft):
    text = llmft('--help')
    for command in COMMANDS: assert f' {command} ' in text
    for command in COMMANDS: assert 'Usage:' in llmft(command, '--help')
    assert '--set' in llmft('train', '--help')


def test_help_names_the_program(llmft):
    "However it is started: from a shell, as a module, or in the process of a notebook."
    started = [[Path(sysconfig.get_path('scripts'))/'llmft'], [sys.executable, '-m', 'llmft']]
    texts = [subprocess.run([*command, '--help'], capture_output=True, text=True).stdout for command in started]
    texts += [llmft('--help'), CliRunner().invoke(app, ['--help']).output]
    assert 'Usage: llmft [OPTIONS] COMMAND' in texts[0] and texts == texts[:1] * 4
    assert "Try 'llmft train --help'" in llmft('train', status=2)


def test_help_without_a_command():
    run = subprocess.run([sys.executable, '-m', 'llmft'], capture_output=True, text=True)
    assert 'Usage:' in run.stdout + run.stderr and 'recipes' in run.stdout + run.stderr


@pytest.mark.parametrize('args, part', [
    (['trian', 'x'], 'train'), (['train'], 'FILE|RECIPE'), (['train', 'x', '--foo'], '--foo'),
    (['chat', 'x', '--temperature', '-1'], '--temperature'), (['preview', 'smollm2-135m', '-n', '0'], '-n')])
def test_wrong_use(args, part, llmft): assert part in llmft(*args, status=2)


def test_recipes(llmft, tmp_path):
    listed = llmft('recipes').splitlines()
    assert [line.split()[0] for line in listed] == [*list_recipes()] and 'smollm2-135m' in list_recipes()
    assert all(len(line.split()) > 3 for line in listed) # each says what it is for
    for name in list_recipes():
        text = llmft('recipes', name)
        (tmp_path/'mine.yml').write_text(text)
        assert load_config(tmp_path/'mine.yml') == load_config(name)
        assert text.startswith('#') # what it is for


def test_check(llmft, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = llmft('check', 'smollm2-135m', '--set', 'output_dir=here')
    assert 'model: builtin/smollm2-135m, 135 million weights, qlora' in text
    assert '1,100 rows read: 1,000 to learn from, 100 held out' in text and 'output: here' in text
    assert [*tmp_path.iterdir()] == []


def test_preview(llmft):
    text = llmft('preview', 'smollm2-135m', '-n', '2')
    assert text.count('### Response:') == 2 and text.count(' learned (') == 2


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A run of two steps on six rows; the model is a small one."
    folder = tmp_path_factory.mktemp('cli')
    rows = [{'instruction': f'Say {i}.', 'output': f'Here it is: {i}'} for i in range(6)]
    rows.append({'instruction': 'Say nothing.', 'output': ''})
    (folder/'rows.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    (folder/'run.yml').write_text(f'''\
base_model: {save_tiny(folder/'model', tokenizer=small_tokenizer())}
adapter: lora
lora_r: 4
lora_target_modules: [q_proj]
datasets:
  - path: {folder/'rows.jsonl'}
sequence_len: 64
micro_batch_size: 2
gradient_checkpointing: false
sample_packing: false
max_steps: 2
output_dir: {folder/'unused'}
''')
    command = [sys.executable, '-m', 'llmft', 'train', folder/'run.yml', '--out', folder/'run']
    run = subprocess.run([*command, '--set', 'learning_rate=1e-3'], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder, run


def test_train(trained):
    folder, run = trained
    assert '6 rows are used.\n1 is left out: the answer is empty (row 7).' in run.stdout
    assert f'run {folder/"run"}: 2 steps' in run.stdout
    assert 'Warning' not in run.stderr and 'Failed to load' not in run.stderr, run.stderr
    names = {p.name for p in (folder/'run').iterdir()}
    assert {'adapter', 'config.yml', 'config_completed.yml', 'metrics.jsonl', 'README.md'} <= names
    assert not (folder/'unused').exists()
    config = load_config(folder/'run'/'config_completed.yml')
    assert (config.learning_rate, config.max_steps, config.output_dir) == (1e-3, 2, str(folder/'run'))


def test_train_again(trained, llmft):
    folder, _ = trained
    assert '--overwrite' in llmft('train', folder/'run.yml', '--out', folder/'run', status=2)


def test_generate(trained, llmft):
    folder, _ = trained
    assert llmft('generate', folder/'run', '-p', 'Say 3.', '--max-new-tokens', '4').strip()
    (folder/'questions.jsonl').write_text('{"instruction": "Say 1."}\n\n{"instruction": "Say 2.", "input": "please"}\n')
    (folder/'questions.txt').write_text('Say 1.\nSay 2.\n')
    from llmft.inference.chat import Chat
    asked = []
    def generate(self, questions, **settings):
        asked.append((questions, settings))
        return ['one [red]', 'two', 'three'][:len(questions)]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Chat, 'generate', generate)
        assert llmft('generate', folder/'run', folder/'questions.jsonl', '--temperature', '0.5') == (
            '[1] Say 1.\none [red]\n\n[2] Say 2.\ntwo\n')
        llmft('generate', folder/'run', folder/'questions.txt', '-p', 'Say 3.')
    questions = [{'instruction': 'Say 1.'}, {'instruction': 'Say 2.', 'input': 'please'}]
    assert asked[0][0] == questions
    settings = {'max_new_tokens': 256, 'temperature': 0.5, 'progress': 'Answering'}
    assert settings.items() <= asked[0][1].items() and asked[0][1]['top_k'] == 0
    assert asked[1][0] == ['Say 3.', 'Say 1.', 'Say 2.']


@pytest.mark.parametrize('lines', ['Say 2.\n/help\n/quit\nnot read\n', 'Say 2.\n/help\n'], ids=['quit', 'end of file'])
def test_chat(lines, trained, llmft, monkeypatch):
    folder, _ = trained
    monkeypatch.setattr('sys.stdin', io.StringIO(lines))
    monkeypatch.setattr('llmft.inference.chat.stream_generate', lambda *_, **__: iter(['the ', 'answer']))
    text = llmft('chat', folder/'run')
    assert text.count('the answer\n') == 1 and '/quit ends' in text and 'so does Ctrl-D' in text


def test_chat_from_a_pipe(trained):
    "The end of the questions is the end, with status 0; nothing is aborted."
    folder, _ = trained
    run = subprocess.run([sys.executable, '-m', 'llmft', 'chat', str(folder/'run')], input='Say 2.\n/use base\nSay 3.',
                         text=True, capture_output=True)
    assert run.returncode == 0 and 'terminate' not in run.stderr, run.stderr
    assert run.stdout.startswith(f'This is {folder/"model"} as tuned in ') and 'Now you ask base.' in run.stdout


def test_score(trained, llmft, tmp_path):
    folder, _ = trained
    assert 'no held-out rows' in llmft('score', folder/'run', status=2)
    heldout = [{'path': 'builtin/python-evol-1k', 'split': 'heldout[:1]'}]
    save_config(load_config(folder/'run.yml', test_datasets=heldout), tmp_path/'config_completed.yml')
    assert '--run-code' in llmft('score', tmp_path, status=2) # code is never run without being asked for
    assert [p.name for p in tmp_path.iterdir()] == ['config_completed.yml']


def test_merge(trained, llmft):
    folder, _ = trained
    out = folder/'merged'
    assert f'merged model: {out}' in llmft('merge', folder/'run', out).replace('\n', '')
    assert {'model.safetensors', 'config.json', 'tokenizer.json', 'llmft.yml'} <= {p.name for p in out.iterdir()}
    stamp = (out/'model.safetensors').stat().st_mtime_ns
    message = llmft('merge', folder/'run', out, status=2)
    assert 'exists already' in message and '--overwrite' in message
    assert (out/'model.safetensors').stat().st_mtime_ns == stamp
    assert llmft('generate', out, '-p', 'Say 3.', '--max-new-tokens', '4').strip() # a merged model is asked like a run


def test_a_reader_that_goes_away():
    "`llmft recipes NAME | head -1` ends in silence."
    command = [sys.executable, '-m', 'llmft', 'recipes', 'smollm2-135m']
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run.stdout.close()
    err = run.stderr.read()
    run.wait()
    assert 'Traceback' not in err, err
