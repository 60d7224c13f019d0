"The window of a run in a real kernel of Jupyter."
import base64, io
import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image
from llmft.config.config import save_config
from llmft.plots import _small_png
from llmft.training.watch import plot_training
from tests.tiny import alpaca_rows, save_rows, save_tiny, tiny_config

SETTINGS = dict(max_steps=6, val_set_size=4, evals_per_epoch=1, logging_steps=2, sequence_len=128, save_strategy='no')
TRAIN = '''
from contextlib import nullcontext
from unittest.mock import patch
from llmft import finetune
from llmft.training import train, watch
log = train.Throughput.log
def log_nan(self, logs, *args): return log(self, logs | {'loss': float('nan')} if 'loss' in logs else logs, *args)
always = patch('llmft.training.watch.Pace.is_due', lambda pace: True)
'''
CASES = { # name -> what is different while the run of that name trains
    'often': 'always', 'seldom': 'nullcontext()',
    'broken': "always, patch('llmft.training.watch.plot_training', lambda *args: 1/0)",
    'nan': "patch('llmft.training.train.Throughput.log', log_nan)"}


class Client(NotebookClient):
    "Notes each message of the kernel that holds a picture, with the number of its cell."
    def process_message(self, msg, cell, cell_index):
        if 'image/png' in msg['content'].get('data', {}): self.pictures.append((cell_index, msg))
        return super().process_message(msg, cell, cell_index)


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    "name -> (outputs of the cell that trains, messages with a picture, run folder); all in one kernel."
    folder = tmp_path_factory.mktemp('watch')
    model, data, cells = save_tiny(folder/'model'), save_rows(folder/'rows.jsonl', alpaca_rows(16)), [TRAIN]
    for name, different in CASES.items():
        save_config(tiny_config(model, data, folder/name, **SETTINGS), folder/f'{name}.yml')
        cells.append(f'with {different}: run = finetune({str(folder/name)!r} + ".yml")')
    cells.append(f'from llmft import Run\nfrom pathlib import Path\nRun(Path({str(folder/"seldom")!r}))')
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    client = Client(notebook, timeout=300, allow_errors=True)
    client.pictures = []
    client.execute()
    return {name: (notebook.cells[i].outputs, [msg for n, msg in client.pictures if n == i], folder/name)
            for i, name in enumerate([*CASES, 'shown'], 1)}


def printed(outputs): return ''.join(o.text for o in outputs if o.get('name') == 'stdout')


def pictures(outputs): return [o.data for o in outputs if 'image/png' in o.get('data', {})]


def red(outputs): return [o for o in outputs if o.output_type == 'error' or o.get('name') == 'stderr']


def test_one_picture_is_redrawn(results):
    outputs, sent, _ = results['often']
    [picture] = pictures(outputs)
    assert [msg['msg_type'] for msg in sent] == ['display_data'] + ['update_display_data']*(len(sent) - 1)
    assert len(sent) >= 8 and len({msg['content']['transient']['display_id'] for msg in sent}) == 1
    first, last = (sent[i]['content']['data']['image/png'] for i in (0, -1))
    assert picture['image/png'] == last != first and picture['text/plain'] == 'step 6 of 6'
    assert 500 < Image.open(io.BytesIO(base64.b64decode(last))).width < 700 and len(last) < 60_000
    assert not red(outputs)


def test_a_line_of_text_for_each_line_of_metrics(results):
    for name in ('often', 'seldom', 'broken'):
        lines = [line for line in printed(results[name][0]).splitlines() if line.startswith('step ')]
        trained = [line for line in lines if ': loss' in line]
        assert [line.split(':')[0] for line in trained] == ['step 2/6', 'step 4/6', 'step 6/6']
        assert all('tokens/s' in line and 'GiB' in line and 'gradient norm' in line for line in trained)
        assert lines[0].startswith('step 0/6: held-out loss') and lines[-1].startswith('step 6/6: held-out loss')


def test_drawing_takes_a_hundredth_of_the_time(results):
    outputs, sent, _ = results['seldom'] # at the start, at the end, perhaps once between
    assert 2 <= len(sent) <= 4 and len(pictures(outputs)) == 1 and not red(outputs)


def test_a_drawing_that_fails_stops_nothing(results):
    outputs, sent, run = results['broken']
    assert not sent and not red(outputs) and (run/'adapter').is_dir()
    assert printed(outputs).count('The picture cannot be drawn, the run goes on without it: division by zero.') == 1


def test_a_loss_that_is_no_number_is_in_the_last_picture(results):
    outputs, sent, _ = results['nan']
    assert [o.ename for o in outputs if o.output_type == 'error'] == ['UserError']
    assert len(sent) == 2 and pictures(outputs)[0]['text/plain'].startswith('step 2 of 6')


def test_a_run_shows_itself_once(results):
    [shown] = results['shown'][0] # and no second picture at the end of the cell
    markdown = shown.data['text/markdown']
    assert 'tuned with qlora' in markdown and 'llmft chat' in markdown
    assert markdown.count('](data:image/png;base64,') == 1 and len(markdown) < 30_000


@pytest.mark.parametrize('metrics', [[], [{'step': 0, 'eval_loss': 7.3}], [{'step': 1, 'loss': float('nan')}]])
@pytest.mark.parametrize('planned', [None, 14.2])
def test_a_picture_of_next_to_nothing(metrics, planned):
    assert _small_png(plot_training(metrics, 'step 0 of 9', planned), dpi=50, colours=8)
