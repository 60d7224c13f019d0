from tests.readme import ROOT, readme


def test_readme():
    markdown, pictures = readme()
    assert (ROOT/'README.md').read_text(encoding='utf-8') == markdown, 'run `python -m tests.readme`'
    for path, data in pictures.items(): assert (ROOT/path).read_bytes() == data, 'run `python -m tests.readme`'
