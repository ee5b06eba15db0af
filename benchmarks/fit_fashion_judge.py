"""Fit the classifier that judges the fashion model's pictures, and write its weights.

    apt-get install dataset-fashion-mnist
    python -m benchmarks.fit_fashion_judge [--epochs 10] [--threads 1]

Fitted on the 60,000 training pictures, each mirrored or not at random; on the 10,000 others its accuracy and the moments
of its features are taken, as it ships: with weights rounded to float16.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.fashion_mnist import load_fashion_mnist
from taylorseer_fx.fashion.judge import JUDGE_PATH, JudgeNetwork
from taylorseer_fx.half_weights import save_half


def fit(network: JudgeNetwork, pictures: Tensor, labels: Tensor, num_epochs: int, batch: int = 128) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01, fused=True)
    num_batches = len(pictures) // batch
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=num_epochs * num_batches)
    for epoch in range(num_epochs):
        order = torch.randperm(len(pictures))[: num_batches * batch]
        for index in order.split(batch):
            loss = cross_entropy(network(mirror(pictures[index])), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
        print(f"epoch {epoch + 1}/{num_epochs}  last loss {loss.item():.3f}  {time.process_time() / 60:.1f} min", flush=True)


def mirror(pictures: Tensor) -> Tensor:
    """The batch with each picture turned left to right, or not."""
    return torch.where(torch.rand(len(pictures), 1, 1, 1) < 0.5, pictures.flip(3), pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=JUDGE_PATH)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    network = JudgeNetwork()
    fit(network, *load_fashion_mnist("train"), args.epochs)
    network.eval().half().float()  # judge what is shipped
    pictures, labels = load_fashion_mnist("t10k")
    features = network.features(pictures)
    network.held_out_accuracy.fill_(network.accuracy(pictures, labels))
    network.real_mean.copy_(features.mean(0))
    network.real_covariance.copy_(features.T.cov())
    save_half(network, args.out)
    print(f"named rightly, of {len(pictures):,} held out: {network.held_out_accuracy:.2%}")


if __name__ == "__main__":
    main()
