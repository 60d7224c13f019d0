"""What somebody sees who types the commands: each one in a pseudo-terminal, with the time of its first character and
its longest silence. `results/terminal.txt` is the transcript, each line with its second."""
import json, os, pty, re, select, sys, tempfile, termios, time
from pathlib import Path

RESULTS = Path(__file__).parent/'results'
LIMIT = 5.0 # seconds that a command may be silent
RUN = '''\
base_model: builtin/smollm2-135m
adapter: qlora
load_in_4bit: true
datasets:
  - path: builtin/python-evol-1k
    split: train[:60]
test_datasets:
  - path: builtin/python-evol-1k
    split: heldout[:8]
sequence_len: 256
micro_batch_size: 4
num_epochs: 1
learning_rate: 1e-3
output_dir: run
'''
FACTORY = 'model_name_or_path: codellama/CodeLlama-7b-hf\nstage: sft\nfinetuning_type: lora\ndataset: alpaca_en_demo\n'
COMMANDS = { # name: (arguments, what is typed)
    'help': ('--help', ''), 'version': ('--version', ''), 'recipes': ('recipes', ''),
    'a missing file': ('train nowhere.yml', ''), 'a wrong column': ('train wrong.yml', ''),
    'check': ('check run.yml', ''), 'preview': ('preview run.yml -n 1', ''), 'plan': ('plan run.yml', ''),
    'plan --fit': ('plan run.yml --gpu T4 --fit', ''), 'convert': ('convert factory.yml', ''),
    'train': ('train run.yml', ''), 'generate': ('generate run -p Why? -p How? --max-new-tokens 32', ''),
    'chat': ('chat run', 'Write `double(x)`.\n/quit\n'), 'score': ('score run --run-code', ''),
    'merge': ('merge run merged', ''), 'demo': ('demo --out demo', ''),
}


def start(arguments, folder): # -> (process id, file descriptor of the terminal)
    pid, terminal = pty.fork()
    if pid: return pid, terminal
    termios.tcsetwinsize(0, (40, 100))
    os.chdir(folder)
    os.environ.update(TERM='xterm', PYTHONPATH=str(Path(__file__).parent.parent.resolve()))
    os.execv(sys.executable, [sys.executable, '-m', 'llmft', *arguments.split()])


def watch(pid, terminal, typed, began): # -> ([(second, text)], exit status)
    pieces, typed = [], typed.encode()
    while True:
        if select.select([terminal], [], [], 0.05)[0]:
            try: data = os.read(terminal, 65536)
            except OSError: data = b'' # Linux says the end of a terminal so
            if not data: break
            pieces.append((time.perf_counter() - began, data.decode(errors='replace')))
            if typed and pieces[-1][1].endswith('> '): typed = b'' if os.write(terminal, typed) else typed
    os.close(terminal)
    return pieces, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def measure(name, folder):
    began, (arguments, typed) = time.perf_counter(), COMMANDS[name]
    pieces, status = watch(*start(arguments, folder), typed, began)
    seconds = time.perf_counter() - began
    visible = [second for second, text in pieces if text.strip()] or [seconds]
    silences = [b - a for a, b in zip([0, *visible], [*visible, seconds])]
    return pieces, {'command': f'llmft {arguments}', 'status': status, 'first character': round(visible[0], 2),
                    'longest silence': round(max(silences), 1), 'seconds': round(seconds, 1)}


def as_lines(text): # what a terminal would show in the end of text that goes back to the start of a line
    lines = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', text).replace('\r\n', '\n').split('\n')
    return [line.split('\r')[-1] or line.rstrip('\r').split('\r')[-1] for line in lines]


def kind(line): # the same for a line that only counts on
    return re.sub(r'[^a-zA-Z ]+', '', line).split('  ')[0][:24]


def transcript(pieces): # each line with the second in which it came; of a line that counts on, the first and the last
    lines = [(at, line) for at, text in pieces for line in filter(str.strip, as_lines(text))]
    kinds = [kind(line) for _, line in lines]
    counts = ['%' in line or '…' in line for _, line in lines]
    def in_between(i): return counts[i] and 0 < i < len(lines) - 1 and kinds[i - 1] == kinds[i] == kinds[i + 1]
    return '\n'.join(f'{at:7.1f}  {line}' for i, (at, line) in enumerate(lines) if not in_between(i))


def main(names):
    folder, results = Path(tempfile.mkdtemp()), []
    (folder/'run.yml').write_text(RUN)
    (folder/'wrong.yml').write_text(RUN.replace('split: train[:60]', 'type: input_output'))
    (folder/'factory.yml').write_text(FACTORY)
    texts = []
    for name in names:
        pieces, result = measure(name, folder)
        results.append(result)
        print(result, flush=True)
        texts.append(f'$ {result["command"]}\n{transcript(pieces)}\n'.replace(str(folder), ''))
    RESULTS.mkdir(exist_ok=True)
    machine = {'cores': os.cpu_count(), 'load': round(os.getloadavg()[0], 1), 'python': sys.version.split()[0]}
    (RESULTS/'terminal.json').write_text(json.dumps({'machine': machine, 'commands': results}, indent=1) + '\n')
    (RESULTS/'terminal.txt').write_text('\n'.join(texts))


if __name__ == '__main__': main(sys.argv[1:] or [name for name in COMMANDS if name != 'demo'])
