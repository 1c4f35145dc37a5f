"""Write a ticket as a C program, test images, and the classes that the network in Python predicts for them.

    python export.py TICKET [--draw fly|stored] [--images 1000]

The ticket must be for MNIST. Writes build/digits.c, digits.h, images.bin and expected.txt.
"""

import argparse
from pathlib import Path

from crbg import Ticket
from crbg.data.datasets import info
from crbg.data.sources import load
from crbg.export import predictions, to_c

TICKET = "../../results/recorded/tickets/crbg-lenet-300-100-mnist-d0.022-f3eaac86fbba2110-seed10.safetensors"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("ticket", nargs="?", default=TICKET)
parser.add_argument("--draw", default="fly", choices=("fly", "stored"))
parser.add_argument("--images", type=int, default=1000)
args = parser.parse_args()

ticket, mnist, some = Ticket.load(args.ticket), info("mnist"), slice(args.images)
print(to_c(ticket, "build", args.draw, name="digits", pixels=(mnist.mean, mnist.std)))
images = load("mnist").validation
Path("build/images.bin").write_bytes(images.x[some].numpy().tobytes())
classes = predictions(ticket.model(), images.inputs(some)).argmax(1).tolist()
Path("build/expected.txt").write_text("".join(f"{c}\n" for c in classes))
