"""Measure how fast training is, against the bare frozen network and against an epoch written the textbook way.

    clipvp benchmark --source timm:resnet18 --random-weights true --image-size 32 --json resnet18.json
    clipvp benchmark --source timm:vit_base_patch32_224 --random-weights true --prompt border --only step
    clipvp benchmark --only architectures --batch-size 32 --json architectures.json
    clipvp benchmark --only [sharing,profile] --architectures [resnet18] --image-sizes [128] --frames [8]
    clipvp benchmark --prompt border --width 8 --keep-core true --only epoch
    clipvp benchmark --only quickstart

On a GPU add --precision bf16, and --data path/to/cifar10 --images 50000 for the epoch of CIFAR-10. The
versions that are compared run alternately in one process. A figure is the median over rounds; a ratio is the median of
the ratios of the rounds. --only step, or a list such as [step,epoch], measures some parts; --seconds is the time for
each. The lower bound is the frozen network alone: forward, and the gradient to the pixels of a batch in memory.

Changes that were tried, with the gain that was predicted and measured. Sharing the border and
`mapping.statistics: running` are not among them; they have parts of their own:

    activations whose gradient needs their input (ReLU6, SiLU) out of place
        predicted: 33 fewer copies of maps in a step of EfficientNet-Lite0, 7 % of its time
        measured:  33 copies to none, the time within the noise, the same bits; kept
    networks channels last
        predicted: faster convolutions on CPUs and on tensor cores
        measured:  about 1.5 times as fast on a CPU, equal up to rounding; kept
    freed memory kept for the next map (--keep-memory false: as by default)
        predicted: a step of 64 images in EfficientNet-Lite0 a third faster, by the share of page faults in its time
        measured:  2.4 times as fast with sharing off, ResNet-18 1.4 times, shared steps 1.2 times; peak memory up to
                   a quarter higher; the same bits; kept
    frozen batch norms as one multiplication and one addition, with gradients on CPUs
        predicted: -25 % for a step of EfficientNet-Lite0, where the gradient of its norms took a third
        measured:  -12 to -30 % with and without sharing, ResNet-18 -2 to -4 %; their input is not needed for the
                   gradient, -25 and -32 % of peak memory with sharing off; up to rounding; kept
    frozen batch norms folded into the convolutions before them
        predicted: -20 % for EfficientNet-Lite0, -8 % for ResNet-18
        measured:  -19 to -28 % and -3 to -6 %; dropped, since which convolution comes before a norm is known of some
                   architectures only, and the line above gives most of it for any network
    networks compiled (torch.compile) on a CPU
        predicted: -10 %, from fused point-wise operators
        measured:  ViT-B/32 -4 %, EfficientNet-Lite0 2.6 times as slow in its backward pass; off by default
    image and border normalised before they are put together, with sharing off
        predicted: -2 % for ResNet-18, -4 % for EfficientNet-Lite0, from the share of the passes over the canvas
        measured:  no; dropped, since the plain way is the graph that is exported and compiled
"""

from benchmark.config import BenchmarkConfig

from clipvp.cli import parse, user_errors


def main() -> None:
    config, _ = parse(__doc__, BenchmarkConfig)
    with user_errors():
        from benchmark.measure_all import run_benchmark

        run_benchmark(config)


if __name__ == "__main__":
    main()
