"""The report holds every model, hides no refusal, and trusts no answer."""

import html.parser
import re

import pytest

from dareu_jax.report import page, plots

EVIL = "<script>alert(1)</script><img src=x onerror=y> ![i](http://e.com/i.png) a|b"


@pytest.fixture(autouse=True)
def _coarse_figures(monkeypatch):
  monkeypatch.setattr(plots, "DPI", 40)


def run(**changes):
  """The arguments of a small report."""
  numbers = {"forget_rouge": 0.4, "retain_rouge": 0.9, "tug_of_war": 0.8, "response_length": 20.0}
  arguments = {
    "title": "Two authors",
    "summary": {
      "models": {name: numbers for name in ("original", "retrained", "dareu", "npo")},
      "stages": {"dareu": {"seconds": 75.0, "skipped": False}},
    },
    "classifier": {"accuracy": 0.971, "held_out_ece": 0.05},
    "history": [{"step": 1, "epoch": 1, "score": 0.3}],
    "epochs": [
      {"epoch": 0, "score": 0.9, "accepted": True, "reason": ""},
      {"epoch": 1, "score": 0.06, "accepted": True, "reason": ""},
      {"epoch": 2, "score": 0.01, "accepted": False, "reason": "gibberish in a fifth"},
    ],
    "target_score": 0.07,
    "chosen_epoch": 1,
    "answers": [
      {
        "split": "forget",
        "prompt": "Who?",
        "truth": "T",
        "original": "O",
        "retrained": "R",
        "dareu": "A",
      }
    ],
    "facts": {"seeds": "0, 1"},
  }
  return {**arguments, **changes}


class Tags(html.parser.HTMLParser):
  """Every tag of a page with its attributes, and its text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.words = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.words.append(data.strip())


def written(folder, **changes):
  paths = page.write_report(folder, **run(**changes))
  return paths, paths.markdown.read_text("utf-8"), paths.html.read_text("utf-8")


def test_both_files_hold_a_row_for_each_model(tmp_path):
  _, markdown, html = written(tmp_path)
  for name in ("original", "retrained", "dareu", "npo"):
    assert re.search(rf"^\| {name} .*0\.400", markdown, re.MULTILINE)
    assert re.search(rf"<th>{name}</th>\s*<td[^>]*>0\.400", html)
  assert "0.971" in markdown and "0.971" in html


def test_answers_are_escaped_in_both_files(tmp_path):
  """Fails where autoescape is off, or where Markdown passes HTML or an image through."""
  answer = dict.fromkeys(("prompt", "truth", "original", "retrained", "dareu"), EVIL)
  _, markdown, html = written(
    tmp_path, answers=[{"split": "test", **answer}], title=EVIL, facts={EVIL: EVIL}
  )
  seen = Tags(html)
  assert "script" not in {tag for tag, _ in seen.tags}
  assert not any("onerror" in attributes for _, attributes in seen.tags)
  assert seen.words.count(EVIL) == 1 + 1 + 2 + 5  # <title>, <h1>, the fact, the answer
  assert "<script" not in markdown and "<img" not in markdown
  assert not re.search(r"(?<!\\)!\[i", markdown)
  tables = [line for line in markdown.splitlines() if line.startswith("| prompt")]
  assert tables and all(line.count("|") == 3 for line in tables)


def test_html_needs_no_other_file_and_no_script(tmp_path):
  _, _, html = written(tmp_path)
  images = [attributes["src"] for tag, attributes in Tags(html).tags if tag == "img"]
  assert len(images) == 2
  assert all(source.startswith("data:image/png;base64,") for source in images)
  assert not re.search(r"(src|href)\s*=\s*.(?!data:)|url\(|@import|https?://", html)


def test_markdown_plots_exist_beside_it(tmp_path):
  paths, markdown, _ = written(tmp_path)
  linked = [tmp_path / name for name in re.findall(r"\]\((.*?)\)", markdown)]
  assert "PPO" not in markdown  # whatever the method
  assert sorted(linked) == sorted(paths.plots)
  assert all(path.read_bytes().startswith(b"\x89PNG") for path in linked)


def test_refusal_and_its_reason_are_told(tmp_path):
  for text in written(tmp_path)[1:]:
    assert "Epoch 1 was chosen" in text and "at or below the target" in text
    assert "Epoch 2 was rejected: gibberish in a fifth." in text


def test_an_epoch_is_counted_among_epochs_and_not_among_reports():
  """A loss-based method reports every fifth."""
  epochs = [{**run()["epochs"][1], "epoch": epoch} for epoch in (0, 5, 10)]
  assert page.decision(epochs, 0.07, 5)[0] == "Epoch 5 was chosen, of 10."


def test_an_epoch_out_of_bounds_that_was_kept_all_the_same_is_told():
  """Guards are off, or the method has no guards: it must not read as rejected, nor as fine."""
  kept = [run()["epochs"][0], {**run()["epochs"][2], "accepted": True}]
  for told in (page.decision(kept, 0.07, 0), page.decision(run()["epochs"], 0.07, 2)):
    text = " ".join(told)
    assert "Epoch 2 was out of bounds, and no guard acts: gibberish in a fifth." in text
    assert "rejected" not in text and "No guard was violated" not in text


@pytest.mark.parametrize(
  ("chosen", "target", "words"),
  [(0, 0.07, "nothing was unlearned"), (1, 0.05, "above the target"), (None, None, "No epoch was")],
)
def test_failure_to_unlearn_is_not_hidden(chosen, target, words):
  assert words in " ".join(page.decision(run()["epochs"], target, chosen))


def test_what_is_still_known_is_told_beside_unseen_owners():
  original = {"epoch": 0, "score": 0.9, "extraction": 0.941, "unseen_extraction": 0.1,
              "continuation_score": 0.745, "continuation_level": 0.2}
  kept = {"epoch": 1, "score": 0.05, "extraction": 0.168, "unseen_extraction": 0.105,
          "continuation_score": 0.094, "continuation_level": 0.066}
  told = " ".join(page.decision([original, kept], 0.07, 1))
  assert "completes 16.8% of a true answer (of an unseen owner's 10.5%; the original 94.1%)" in told
  assert "score 0.094 (of an unseen owner's 0.066; the original's 0.745)." in told
  assert page.epoch_rows([original, kept], 1)[1][3:7] == ("0.094", "0.066", "0.168", "0.105")


def test_method_names_the_column_of_answers(tmp_path):
  answers = [{"split": "forget", "prompt": "Who?", "npo": "the npo answer", "dareu": "not this"}]
  for text in written(tmp_path, methods=("npo",), answers=answers)[1:]:
    assert "after: npo" in text and "the npo answer" in text and "not this" not in text


def test_empty_answer_is_told_from_an_absent_one(tmp_path):
  answers = [{"split": "forget", "prompt": "Who?", "dareu": " ", "truth": "T"}]
  _, markdown, html = written(tmp_path, answers=answers)
  assert markdown.count("(empty)") == html.count("(empty)") == 1
  assert re.search(r"^\| before: original \| —", markdown, re.MULTILINE)


def test_report_of_nothing_is_written(tmp_path):
  """Fails where an empty part raises: a baseline has no PPO steps, a first run no answers."""
  nothing = {"summary": {}, "classifier": {}, "history": [], "epochs": [], "answers": []}
  paths, markdown, html = written(
    tmp_path, **nothing, facts={}, target_score=None, chosen_epoch=None
  )
  assert [path.name for path in paths.plots] == ["plane.png"]
  assert "training.png" not in markdown
  assert "Nothing recorded" in markdown and "Nothing recorded" in html


def test_odd_characters_do_not_stop_the_report(tmp_path):
  """A lone surrogate cannot be encoded; a NUL is no HTML."""
  answers = [{"split": "forget", "prompt": "Who?", "dareu": "a\ud83d b\x00 c"}]
  _, markdown, html = written(tmp_path, answers=answers)
  for text in (markdown, html):
    assert "\x00" not in text and "a� b� c" in text


def test_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
  """Fails where the file is opened in place, or the temporary one stays behind."""
  paths, before, _ = written(tmp_path)

  def broken(*_):
    raise OSError("disk full")

  monkeypatch.setattr(page.os, "replace", broken)
  with pytest.raises(OSError, match="disk full"):
    page.write_report(tmp_path, **run(title="Another"))
  assert paths.markdown.read_text("utf-8") == before
  assert not list(tmp_path.rglob("*.tmp"))
