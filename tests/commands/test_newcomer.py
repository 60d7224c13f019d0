"What a newcomer meets in the first hour: quick refusals, signs of life, ways out."
import os, re, select, struct, subprocess, sys, time
from pathlib import Path

import pytest

from llmft.commands.cli import app, main
from llmft.core import UserError
from llmft.inference.chat import chat_loop
from llmft.inference.generate import generate_ids, stream_generate
from llmft.inference.questions import label_answers
from tests.tiny import alpaca_rows, save_rows, save_tiny, small_tokenizer, tiny_config

HEAVY = {'torch', 'transformers', 'peft', 'datasets', 'bitsandbytes', 'trl'}
RUN = '{{base_model: builtin/smollm2-135m, output_dir: run, datasets: [{{path: {path}, {keys}}}]}}'


def refuse(*arguments, folder): # a command that is refused -> (its message, the heavy modules that it imported)
    code = ('import sys\nfrom llmft.commands.cli import main\ntry: main(sys.argv[1:])\n'
            f'finally: print(sorted({HEAVY} & set(sys.modules)))')
    env = os.environ | {'PYTHONPATH': str(Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, '-c', code, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    assert run.returncode == 2 and 'Traceback' not in run.stderr, run.stderr
    assert [*folder.glob('run')] == []
    return run.stderr, run.stdout.strip()


@pytest.fixture
def folder(tmp_path):
    save_rows(tmp_path/'rows.jsonl', alpaca_rows(3))
    (tmp_path/'rows.csv').write_text('question,answer\nWhy?,Because.\n' * 2)
    (tmp_path/'cut.jsonl').write_text('{"instruction": "Add.", "output": "1"}\n{"instruction": "Ad')
    (tmp_path/'number.jsonl').write_text('{"instruction": "Add.", "output": 1}\n')
    return tmp_path


@pytest.mark.parametrize('command', ['train', 'check', 'preview'])
@pytest.mark.parametrize('path, keys, part', [
    ('nowhere.jsonl', 'type: alpaca', 'no such file'), ('rows.csv', 'type: alpaca', '`instruction`'),
    ('rows.jsonl', 'type: chat_template', '`messages`'),
    ('builtin/python-evol-1k', 'split: tset', 'no split `tset`'),
    ('cut.jsonl', 'type: alpaca', 'cut.jsonl:2'), ('number.jsonl', 'type: alpaca', '`output` must be text')])
def test_wrong_data_is_refused_before_anything_heavy_is_loaded(command, path, keys, part, folder):
    if command != 'train' and path != 'rows.csv': pytest.skip('the same function')
    (folder/'run.yml').write_text(RUN.format(path=path, keys=keys))
    message, loaded = refuse(command, 'run.yml', folder=folder)
    assert part in message and loaded == '[]', (message, loaded)


@pytest.mark.parametrize('arguments', [
    ['train', 'nowhere.yml'], ['chat', 'nowhere'], ['generate', 'nowhere', '-p', 'Why?'], ['score', 'nowhere'],
    ['merge', 'nowhere', 'out'], ['convert', 'nowhere.yml'], ['generate', '.', 'nowhere.jsonl'],
    ['train', 'smollm2-135m', '--set', 'lora_rr=4'], ['train', 'smollm2-135m', '--out', 'rows.csv'],
    ['plan', 'smollm2-135m', '--set', 'base_model=./nowhere'], ['check', 'smollm2-135m', '--set', 'base_model=.']])
def test_wrong_names_are_refused_before_anything_heavy_is_loaded(arguments, folder):
    message, loaded = refuse(*arguments, folder=folder)
    assert loaded == '[]' and 'Error: ' in message


def in_terminal(*arguments): # -> [(second, text)] of a command in a pseudo-terminal
    fcntl, pty, termios = map(pytest.importorskip, ['fcntl', 'pty', 'termios']) # Windows has none
    began, (pid, terminal) = time.perf_counter(), pty.fork()
    if not pid:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 100, 0, 0)) # no terminal has a width of 0
        os.execv(sys.executable, [sys.executable, *arguments])
    pieces = []
    while True:
        if not select.select([terminal], [], [], 60)[0]: break
        try: text = os.read(terminal, 65536).decode()
        except OSError: break
        pieces.append((time.perf_counter() - began, text))
    os.waitpid(pid, 0)
    os.close(terminal)
    return pieces


def test_a_terminal_shows_what_is_done():
    text = ''.join(text for _, text in in_terminal('-m', 'llmft', 'recipes'))
    assert text.lstrip('\r').startswith('reading the recipes…') # first of all
    shown = re.sub(r'[^\n]*\r(?!\n)', '', text) # as the terminal shows it in the end
    assert '…' not in shown and 'smollm2-135m' in shown


def test_seconds_go_by_where_nothing_is_said():
    code = ('import time\nfrom llmft.core import log\nfrom llmft.commands.status import status_line\n'
            'with status_line():\n log.info("working")\n time.sleep(2.5)\n print("done")')
    pieces = in_terminal('-c', code)
    text = ''.join(text for _, text in pieces)
    assert '\rworking… 1 s' in text or '\rworking… 2 s' in text # a busy machine passes over one
    assert text.splitlines()[-1] == 'done' and text.split('done')[0].endswith(' \r')


def test_a_bar_of_progress_stays_alive():
    code = ('import time\nfrom tqdm import tqdm\nfrom llmft.core import log\n'
            'from llmft.commands.status import status_line\n'
            'with status_line():\n log.info("working")\n for _ in tqdm([1], desc="Steps"): time.sleep(2.5)')
    text = ''.join(text for _, text in in_terminal('-c', code))
    assert re.search('00:0[12]', text.split('100%')[0]) and 'working… 1 s' not in text


def test_a_log_file_has_each_message_once():
    run = subprocess.run([sys.executable, '-m', 'llmft', 'recipes'], capture_output=True, text=True)
    assert run.stderr == 'reading the recipes…\n' and 'reading' not in run.stdout


def test_version(capsys):
    import llmft
    with pytest.raises(SystemExit) as e: main(['--version'])
    assert e.value.code == 0 and capsys.readouterr().out == f'llmft {llmft.__version__}\n'


@pytest.mark.parametrize('command', [None, *(c.name for c in app.registered_commands)])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit): main([*filter(None, [command]), '--help'])
    examples = capsys.readouterr().out.split('Examples:')[1]
    assert f'llmft {command or "demo"}' in examples
    known = {c.name for c in app.registered_commands}
    assert set(re.findall(r'llmft ([\w-]+)', examples)) <= known


def test_answers_have_names_where_there_are_several():
    chats = {'messages': [{'role': 'user', 'content': 'What?'}, {'role': 'assistant', 'content': 'That.'}]}
    row = {'instruction': 'Add.\nAll ' + 'of them ' * 40, 'output': 'secret'}
    text = label_answers(['Why?', row, chats], ['one', 'two\n', 'three'])
    assert text.startswith('[1] Why?\none\n\n[2] Add. All of them') and '\ntwo\n\n[3] What?\nthree' in text
    assert 'secret' not in text and 'That.' not in text and max(map(len, text.splitlines())) < 100
    assert label_answers(['Why?'], ['one']) == 'one'


class Asked: # a `Chat` that notes what it is asked
    adapters, multi_turn, path = ['base', 'first'], True, None
    config = tiny_config('model', 'rows.jsonl', 'out')

    def __init__(self): self.questions, self.messages = [], []
    def clear(self): self.messages = []
    def use(self, name): raise UserError(f'there is no {name}')

    def stream(self, text, **sampling):
        self.questions.append(text)
        yield 'half '
        if text == 'stop': raise KeyboardInterrupt
        yield 'answer'


def talk(*lines):
    lines, asked = iter(lines), Asked()
    def next_line(prompt):
        try: return next(lines)
        except StopIteration: raise EOFError from None
    chat_loop(asked, input_fn=next_line)
    return asked.questions


@pytest.mark.parametrize('line, part', [
    ('/hlep', 'Did you mean `/help`?'), ('/exit', 'no command /exit'), ('/keep me', 'no command /keep'),
    ('/use other', 'there is no other'), ('/CLEAR', 'no command /CLEAR')])
def test_commands_are_not_sent_to_the_model(line, part, capsys):
    assert talk(line) == [] and part in capsys.readouterr().out


@pytest.mark.parametrize('line', ['/etc/hosts is what?', 'What is /quit?', '1/2', '/ is a sign', '//'])
def test_what_is_no_command_is_sent(line): assert talk(line) == [line]


def test_ctrl_c_stops_one_answer(capsys):
    assert talk('stop', 'go on', '/quit', 'not read') == ['stop', 'go on']
    text = capsys.readouterr().out
    assert 'half  (stopped)' in text and 'half answer' in text and text.startswith('This is model. Type a question.')


def test_scores_show_what_programs_said():
    from llmft.evaluation.sandbox import CodeResult
    from llmft.evaluation.scores import Scores
    details = ['File "<string>", in <module>', "NameError: name '__x__'", 'a|b', '*a*', '$x$ and $y$', '`f`', '[1](2)']
    for detail in details:
        shown = Scores(['all'], [CodeResult(False, 'error', detail)])._repr_markdown_()
        assert re.search(r'<\w|__x__|\*a\*|\$x|`f`|\]\(', shown) is None
    assert '<string>' in str(Scores(['all'], [CodeResult(False, 'error', details[0])]))


@pytest.fixture
def config(tmp_path):
    rows = save_rows(tmp_path/'rows.jsonl', alpaca_rows(12))
    return tiny_config(save_tiny(tmp_path/'model', tokenizer=small_tokenizer()), rows, tmp_path/'run', max_steps=2,
                       save_steps=1, val_set_size=2, bf16=False)


def test_stopped_before_the_first_checkpoint(config, monkeypatch):
    "Both ways out work: `--resume` begins again, and so does `--overwrite`."
    from llmft.training import train
    def stop(*_, **__): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(train.SampleAnswers, 'on_train_begin', stop)
        with pytest.raises(KeyboardInterrupt): train.finetune(config, say=None)
    assert not [*Path(config.output_dir).glob('checkpoints/*')]
    with pytest.raises(UserError, match='--resume.*--overwrite'): train.finetune(config, resume=False, say=None)
    said = []
    run = train.finetune(config, resume=True, say=lambda line: said.append(str(line)))
    assert said[0] == f'{run.path} was stopped before its first checkpoint, so it begins again with the first step.'
    assert [m['step'] for m in run.metrics if 'loss' in m] == [1, 2]
    said.clear()
    train.finetune(config, resume=True, say=lambda line: said.append(str(line)))
    assert said == [f'{run}. It is finished. Take another folder to train anew (--out DIR), '
                    'or replace it (--overwrite).']
    assert train.finetune(config, overwrite=True, say=None).last('step') == 2


def test_only_a_run_can_be_continued(config, tmp_path):
    from llmft.training.train import finetune
    with pytest.raises(UserError, match='not the folder of a run.*without --resume'):
        finetune(config, resume=True, say=None)
    (tmp_path/'run').mkdir()
    with pytest.raises(UserError, match='not the folder of a run'): finetune(config, resume=True, say=None)


def test_score_says_that_there_are_no_tests_before_it_loads_a_model(config, monkeypatch):
    from llmft.config.config import save_config
    from llmft.evaluation import scores
    monkeypatch.setattr(scores, 'load_run', lambda *_: pytest.fail('the model was loaded'))
    Path(config.output_dir).mkdir()
    save_config(config, Path(config.output_dir)/'config_completed.yml')
    for run_code in (False, True):
        with pytest.raises(UserError, match='no row has `tests`'):
            scores.score_run(config.output_dir, run_code=run_code)


def test_the_bar_moves_with_the_tokens(config):
    from transformers import AutoModelForCausalLM
    from tqdm.auto import tqdm
    model, tokenizer, shown = AutoModelForCausalLM.from_pretrained(config.base_model), small_tokenizer(), []
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.MonkeyPatch.context() as m:
        m.setattr(tqdm, 'set_postfix', lambda self, refresh, tokens: shown.append(tokens))
        generate_ids(model, tokenizer, [[5, 6], [7]], max_new_tokens=4, progress='Answering')
    assert shown and shown == [*range(1, len(shown) + 1)] # until both have ended


def test_no_thread_is_left_in_the_model(config):
    from threading import active_count
    from transformers import AutoModelForCausalLM
    model, n_before = AutoModelForCausalLM.from_pretrained(config.base_model), active_count()
    pieces = stream_generate(model, small_tokenizer(), [5, 6], max_new_tokens=1000)
    next(pieces)
    pieces.close()
    assert active_count() <= n_before


@pytest.mark.parametrize('name, text', [
    ('bitsandbytes.backends.cpu.ops', 'Failed to load CPU gemm_4bit_forward from kernels-community'),
    ('transformers.trainer_utils', 'The tokenizer has new PAD/BOS/EOS tokens that differ'),
    ('bitsandbytes.autograd._functions', 'inputs will be cast')])
def test_libraries_say_nothing_pointless(name, text):
    code = f'import llmft, logging; logging.getLogger({name!r}).warning({text!r})'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stderr == ''
