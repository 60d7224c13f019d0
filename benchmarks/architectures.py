"""The table of architectures: each is made tiny with random weights, planned, trained, saved, loaded in peft, merged.

python benchmarks/architectures.py [NAME…]
"""
import json, sys, tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.model.architectures import ARCHITECTURES, RESULTS, find_out # noqa: E402

rows = json.loads(RESULTS.read_text(encoding='utf-8')) if RESULTS.exists() else {}
for name in sys.argv[1:] or ARCHITECTURES:
    with tempfile.TemporaryDirectory() as folder: rows[name] = find_out(name, folder)
    print(name, rows[name], flush=True)
    RESULTS.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + '\n', encoding='utf-8')
