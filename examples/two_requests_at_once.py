"""Two requests at once: a server's own loop, in which requests of different lengths take turns on one model.

``handle.stream(name, step=i)`` says whose step a call is. Each stream has its own schedule and its own buffers; the compiled
graphs are shared.
"""

import copy
from typing import Any

import torch
from diffusers import DiTPipeline
from torch import Tensor

import taylorseer_fx


class Request:
    """One picture in the making."""

    def __init__(self, pipe: Any, name: str, label: int, num_steps: int, seed: int) -> None:
        model = pipe.transformer
        self.name, self.step = name, 0
        self.label = torch.tensor([label], device=model.device)
        self.scheduler = copy.deepcopy(pipe.scheduler)
        self.scheduler.set_timesteps(num_steps)
        size = model.config.sample_size
        noise = torch.randn(1, model.config.in_channels, size, size, generator=torch.Generator().manual_seed(seed))
        self.latents = noise.to(model.device, model.dtype)

    @property
    def is_done(self) -> bool:
        return self.step == len(self.scheduler.timesteps)

    def advance(self, model: Any, handle: taylorseer_fx.Acceleration) -> None:
        """Take one denoising step."""
        timestep = self.scheduler.timesteps[self.step]
        with handle.stream(self.name, step=self.step):
            output = model(self.latents, timestep=timestep.to(model.device)[None], class_labels=self.label).sample
        noise = output[:, : self.latents.shape[1]]  # the other half is a variance
        self.latents = self.scheduler.step(noise, timestep, self.latents).prev_sample
        self.step += 1


def serve(requests: list[Request], model: Any, handle: taylorseer_fx.Acceleration) -> None:
    """Let the requests take turns, a step each, until all are done."""
    while waiting := [request for request in requests if not request.is_done]:
        for request in waiting:
            request.advance(model, handle)


def load() -> DiTPipeline:
    """Load the published weights."""
    return DiTPipeline.from_pretrained("facebook/DiT-XL-2-256").to("cuda" if torch.cuda.is_available() else "cpu")


def picture(pipe: Any, latents: Tensor) -> Any:
    """Decode one sample."""
    pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return pipe.numpy_to_pil((pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy())[0]


@torch.no_grad()
def main(pipe: Any = None, out: str = "{}.png", num_steps: tuple[int, int] = (50, 30)) -> dict[str, Tensor]:
    """Serve two requests and save their pictures; returns the latents of each."""
    pipe = pipe if pipe is not None else load()
    handle = taylorseer_fx.accelerate(pipe, order=1, interval=5, warmup=3)

    requests = [
        Request(pipe, "retriever", label=207, num_steps=num_steps[0], seed=0),
        Request(pipe, "otter", label=360, num_steps=num_steps[1], seed=1),
    ]
    serve(requests, pipe.transformer, handle)

    for request in requests:
        picture(pipe, request.latents).save(out.format(request.name))
    print(handle.stats())
    handle.reset()  # frees the buffers of both
    return {request.name: request.latents for request in requests}


if __name__ == "__main__":
    main()
