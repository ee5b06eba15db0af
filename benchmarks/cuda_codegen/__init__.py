"""What Inductor generates for an H100, looked at without one: ``python -m benchmarks.cuda_codegen``.

    a diffusers model on the meta device -> its ATen graph over fake CUDA tensors -> our passes -> Inductor's code -> cubins

Nothing is run: launches and bytes are counted in what is generated, registers and spills are read off the kernels compiled for
sm_90. Needs triton (``pip install taylorseer-fx[cuda-codegen]``), neither a GPU nor a build of torch for CUDA.
"""
