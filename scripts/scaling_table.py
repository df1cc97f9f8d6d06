"""Writes the tables of docs/scaling.md: scaling_table.py FOLDER PAGE. FOLDER holds what scripts/scaling.sh measured."""

import json
import pathlib
import statistics
import sys

# Of the two networks: parameters, and operations of one image in training (three times the forward pass), as `lcsc bench` counts.
NETWORKS = {"DDPM++, CIFAR-10": (55.7e6, 127.1e9), "ADM, ImageNet-64": (295.9e6, 657.8e9)}
# Bytes a second that a rank sends and receives at once, and seconds until a message is there.
LINKS = {"NVLink 4": (450e9, 5e-6), "100 Gb Ethernet": (12.5e9, 30e-6)}
# Operations a second that a GPU is taken to sustain in bf16.
SUSTAINED = 200e12


def seconds(folder, pattern, work):
    """Median over rounds of the medians."""
    rows = [row for path in folder.glob(pattern) for row in json.loads(path.read_text())["rows"]]
    return statistics.median(row["seconds"] for row in rows if row["work"] == work)


def measured(folder):
    numbers = sorted({json.loads(path.read_text())["ranks"] for path in folder.glob("steps-*.json")})
    lines = [
        "| work | ranks | images a step | step | as many processes that know nothing of each other | images a second |",
        "|---|---|---|---|---|---|",
    ]
    for work, share in (("train-tiny", 64), ("train-cifar10", 4)):
        for ranks in numbers:
            step, images = seconds(folder, f"steps-{ranks}-*.json", work), share * ranks
            apart = f"{1e3 * seconds(folder, f'apart-{ranks}-*.json', work):,.0f} ms" if ranks > 1 else ""
            lines.append(f"| `{work}` | {ranks} | {images} | {1e3 * step:,.0f} ms | {apart} | {images / step:,.2f} |")
    lines += ["", "| sum of 55.7 M values | ranks | time | sent by a rank | a second |", "|---|---|---|---|---|"]
    for precision, size in (("f32", 4), ("bf16", 2)):
        for ranks in numbers[1:]:
            time = seconds(folder, f"sum-{precision}-{ranks}-*.json", "all-reduce")
            sent = 2 * (ranks - 1) / ranks * 55.7e6 * size
            lines.append(f"| {precision} | {ranks} | {1e3 * time:,.0f} ms | {sent / 1e6:,.0f} MB | {sent / time / 1e9:.2f} GB |")
    return lines


def ring(ranks, size, link):
    """Seconds: 2(N−1) messages of 1/N of the vector, each rank sending and receiving at once."""
    bandwidth, latency = LINKS[link]
    return 2 * (ranks - 1) * (size / ranks / bandwidth + latency)


def computed():
    lines = ["| parameters | link | ranks | f32 | bf16 | images a rank for 90 %, f32 | bf16 |", "|---|---|---|---|---|---|---|"]
    for name, (parameters, operations) in NETWORKS.items():
        for link in LINKS:
            for ranks in (2, 8, 64):
                times = [ring(ranks, size * parameters, link) for size in (4, 2)]
                # The sum is at most a tenth of the whole step.
                images = [9 * time * SUSTAINED / operations for time in times]
                lines.append(
                    f"| {parameters / 1e6:.0f} M ({name}) | {link} | {ranks} | {1e3 * times[0]:.2f} ms | {1e3 * times[1]:.2f} ms "
                    f"| {max(1, round(images[0]))} | {max(1, round(images[1]))} |"
                )
    return lines


def main():
    folder, page = map(pathlib.Path, sys.argv[1:])
    text = page.read_text()
    for name, lines in (("measured", measured(folder)), ("computed", computed())):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        head, rest = text.split(begin)
        text = head + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1]
    page.write_text(text)


main()
