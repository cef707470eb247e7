def solve_experts(work): raise NotImplementedError
