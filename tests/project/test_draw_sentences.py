"""The script that draws sentences for a cold reading extracts only prose, and only whole sentences."""

import pytest
from project import draw_sentences

MARKDOWN = """# A heading of more than five words here

One sentence that is wrapped
over two lines. Another by Louizos et al. (2018), which is long enough too.

```sh
crbg run all --device cpu --deadline-minutes 5
```

1. **First entry of a list**, which has enough words.
2. Second entry of a list, with enough words.
"""
YAML = """# yaml-language-server: $schema=config/schema.json and some more words
# A comment of several lines is
# one passage of prose.
#   snakemake --cores all all --configfile config.yaml config/deep.yaml
# Another comment follows after this command.
#   SITE_ACCOUNT  the account that all jobs are charged to
experiments:
  one: {about: "a description in a flow mapping, with a colon: here"}
  two:
    about: a description that is wrapped
      over two lines of YAML
    seeds: [1, 2] # a trailing comment with enough words
"""
PYTHON = '''# # A heading of more than five words here
#
# %% [markdown]
# Text of a notebook cell that is
# wrapped over two lines.

# --- a banner of more than five words ---
"""Summary of the module in a few words.

    python examples/this_is_code.py with some more words

Raises:
    KeyError: the name is not one of the known ones.
"""
A = 1  # the first of two trailing comments
B = 2  # the second of two trailing comments


def fail(name):
    raise ValueError(f"{name} is not one of the known names")
'''


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "a.md",
            MARKDOWN,
            {
                "One sentence that is wrapped over two lines.",
                "Another by Louizos et al. (2018), which is long enough too.",
                "**First entry of a list**, which has enough words.",
                "Second entry of a list, with enough words.",
            },
        ),
        (
            "a.yaml",
            YAML,
            {
                "A comment of several lines is one passage of prose.",
                "Another comment follows after this command.",
                "the account that all jobs are charged to",
                "a description in a flow mapping, with a colon: here",
                "a description that is wrapped over two lines of YAML",
                "a trailing comment with enough words",
            },
        ),
        (
            "a.py",
            PYTHON,
            {
                "Text of a notebook cell that is wrapped over two lines.",
                "Summary of the module in a few words.",
                "KeyError: the name is not one of the known ones.",
                "the first of two trailing comments",
                "the second of two trailing comments",
                "{…} is not one of the known names",
            },
        ),
    ],
)
def test_whole_sentences_and_prose_only(name, text, expected):
    assert set(draw_sentences.sentences(name, text)) == expected
