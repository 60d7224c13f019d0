"Ids and labels are those of the systems that people come from, except where those are wrong."
import pytest

from tests.parity import Row, is_known, read_rows, tokenizer_of, verdict

ROWS = read_rows()


@pytest.mark.parametrize('file', ROWS)
def test_equal_or_explained(file):
    rows = [Row(*r, tokenizer_of(r[2])) for r in ROWS[file]]
    if not is_known(rows[0].peer, rows[0].type, rows[0].line): pytest.skip('no translator')
    verdicts = [verdict(row) for row in rows]
    equal, wrong = verdicts.count('equal'), [row.line['id'] for row, v in zip(rows, verdicts) if v == 'wrong']
    print(f'{file}: {equal} equal, {len(rows) - equal - len(wrong)} excepted, {len(wrong)} wrong')
    assert not wrong
