"Every check of the project, as `python -m tests`; what follows is passed to pytest, which comes last."
import json, os, signal, subprocess, sys, sysconfig, time
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORES = os.cpu_count() or 1
WORKERS = min(CORES, 4)    # notebooks at a time: each one loads torch and a small model, about 2 GB of memory
THREADS = CORES // WORKERS # for torch in each of them; more than there are cores makes all of them slower
ENV = {**os.environ, 'OMP_NUM_THREADS': str(THREADS), 'PYTHONUTF8': '1'}


def step(title, *command):
    "Run `command` in the top folder, with a line before it and a line after; whether it ended well."
    print(f'== {title}', flush=True)
    start = time.time()
    ok = subprocess.run(command, cwd=ROOT, env=ENV, stdin=subprocess.DEVNULL).returncode == 0
    print(f'== {title}: {"ok" if ok else "FAILED"} in {time.time() - start:.0f} s', flush=True)
    return ok


def nbdev(name): return str(Path(sysconfig.get_path('scripts'))/f'nbdev-{name}')


def files():
    "The notebooks and the modules with their content."
    paths = [p for folder, end in (('nbs', 'ipynb'), ('llmft', 'py')) for p in (ROOT/folder).rglob(f'*.{end}')]
    return {p: p.read_bytes().replace(b'\r\n', b'\n') for p in paths if '.ipynb_checkpoints' not in p.parts}


def pytest(*args): return subprocess.run([sys.executable, '-m', 'pytest', *args], cwd=ROOT, env=ENV).returncode


def failed(): # names of the tests that failed in the last run
    return [*json.loads((ROOT/'.pytest_cache/v/cache/lastfailed').read_text())]


def main(args):
    # what a shell starts in the background ignores Ctrl-C, and so does all that it starts; tests press it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = files()
    ok = step('clean the notebooks', nbdev('clean')) & step('export the modules', nbdev('export'))
    after = files()
    changed = sorted(str(p.relative_to(ROOT)) for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    if changed:
        print('== FAILED: these were not as nbdev-clean and nbdev-export write them, and now are:', *changed,
              sep='\n   ', flush=True)
    in_pytest = ['--skip-file-re', '^[_.]|^01_first_finetune', '--skip-folder-re', '^[_.]|^reference$']
    ok &= step('run the notebooks', nbdev('test'), '--timing', '--n-workers', str(WORKERS), *in_pytest)
    print('== pytest', flush=True) # its closing line ends the output
    status = pytest('-n', str(WORKERS), '--dist', 'loadfile', *args)
    if status == 1 and len(failed()) <= 5: # what has a clock in it can fail beside others on a machine that is too slow
        print('== FAILED beside the others, and now run alone:', *failed(), sep='\n   ', flush=True)
        status = pytest('--last-failed', *args)
    return status or int(bool(changed) or not ok)


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
