# %% [markdown]
# # Read the records
#
# Every recorded run is one line of a JSON-lines file under `results/recorded/`, so pandas reads a file in one call. Run
# this notebook from the root of a clone: `python examples/read_the_records.py`. It takes a few seconds and downloads
# nothing. `docs/records.md` explains the fields.

# %%
import pandas as pd

FILE = "results/recorded/mnist__lenet-300-100__{}.jsonl"


def read(method: str) -> pd.DataFrame:
    """Read all runs of a method with LeNet-300-100 on MNIST into a table with one column for each recorded value."""
    runs = pd.read_json(FILE.format(method), lines=True, dtype=False, precise_float=True)
    return pd.json_normalize(runs.to_dict("records"))


runs = read("crbg")
print(
    f"{len(runs)} runs of {runs.digest.nunique()} settings, {runs['provenance.search_seconds'].sum() / 3600:.0f} hours"
)

# %% [markdown]
# ## Accuracy against sparsity
#
# Runs with the same digest have the same settings and differ in their seed. Tuning runs and ablations use validation
# images only, so they have no test accuracy. The remaining runs are main runs, with several seeds for each setting. A
# search with `polish` ends with hard gates, 1[mu > 1/2]. Seeds from 20 on belong to a later experiment (`lenet_bytes`).
# Some sparsities have two settings: that of the first reading (`lenet_curve`), and one that was tuned for this sparsity
# later (`lenet_curve_second`).

# %%
TEST = "evaluation.test.readings.binary.accuracy"
tested = runs[runs[TEST].notna() & (runs["spec.epochs"] == 16) & (runs["spec.options.granularity"] == "weight")]
tested = tested[tested.seed < 20]
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
# With a shuffled or inverted mask, or with newly sampled weights (`reinit`), the network's accuracy is about chance.

# %%
controls = {f"evaluation.test.sanity.{name}.accuracy": name for name in ("reinit", "shuffle", "invert")}
print(tested.rename(columns=controls).groupby("spec.density")[list(controls.values())].mean().round(1).to_string())

# %% [markdown]
# ## Density of each layer
#
# Each record contains the number of weights that the ticket keeps in every layer.

# %%
layers = ["fc1.weight", "fc2.weight", "fc3.weight"]
density = pd.DataFrame(
    {name: tested[f"record.layers.{name}.kept"] / tested[f"record.layers.{name}.total"] for name in layers}
)
print(density.groupby(tested["spec.density"]).mean().round(3).to_string())
