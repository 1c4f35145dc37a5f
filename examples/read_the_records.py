# %% [markdown]
# # Read the records
#
# Every run of the study is one line of a JSON-lines file under `results/recorded/`, so pandas reads a file in one call.
# Run this file in the root of a clone: `python examples/read_the_records.py`, a few seconds, no download.

# %%
import pandas as pd

FILE = "results/recorded/mnist__lenet-300-100__{}.jsonl"


def read(method: str) -> pd.DataFrame:
    """Read all runs of a method with LeNet-300-100 on MNIST, one column for each number."""
    runs = pd.read_json(FILE.format(method), lines=True, dtype=False, precise_float=True)
    return pd.json_normalize(runs.to_dict("records"))


runs = read("crbg")
print(
    f"{len(runs)} runs of {runs.digest.nunique()} settings, {runs['provenance.search_seconds'].sum() / 3600:.0f} hours"
)

# %% [markdown]
# ## Accuracy against sparsity
#
# A digest names one setting. Tuning and ablations read validation images only, so they have no test accuracy. What is
# left are the main runs, each setting with several seeds. A search with `polish` ends on hard gates.

# %%
TEST = "evaluation.test.readings.binary.accuracy"
tested = runs[runs[TEST].notna() & (runs["spec.epochs"] == 16) & (runs["spec.options.granularity"] == "weight")]
curve = (
    tested.assign(
        sparsity=100 * (1 - tested["spec.density"]),
        polished=tested["spec.options.polish"] > 0,
        noise=tested["spec.options.noise"],
    )
    .groupby(["polished", "noise", "sparsity", "digest"])[TEST]
    .agg(["mean", "std", "count"])
    .reset_index()
)
curve = curve[curve["count"] == 10]  # the main runs have ten seeds
print(curve.round(2).to_string(index=False))

# %% [markdown]
# ## Controls
#
# With the mask shuffled, inverted, or on freshly drawn weights the same network has about chance.

# %%
controls = {f"evaluation.test.sanity.{name}.accuracy": name for name in ("reinit", "shuffle", "invert")}
print(tested.rename(columns=controls).groupby("spec.density")[list(controls.values())].mean().round(1).to_string())

# %% [markdown]
# ## Where the weights are kept
#
# Records hold the kept weights of every layer.

# %%
layers = ["fc1.weight", "fc2.weight", "fc3.weight"]
density = pd.DataFrame(
    {name: tested[f"record.layers.{name}.kept"] / tested[f"record.layers.{name}.total"] for name in layers}
)
print(density.groupby(tested["spec.density"]).mean().round(3).to_string())
