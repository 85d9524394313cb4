"""LitServe around Leuko's predictor: a peer of benchmarks/service.py, which starts it."""

from __future__ import annotations

import sys
from typing import Any

import litserve


class Api(litserve.LitAPI):
    def setup(self, _device: str) -> None:
        import leuko

        self.predictor = leuko.load()

    def decode_request(self, request):  # LitServe looks at types, and wants none here
        return request["files"].file.read()

    def predict(self, data: bytes) -> dict[str, Any]:
        return self.predictor.predict(data).to_json()

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    server = litserve.LitServer(
        Api(api_path="/api/v1/predict"), accelerator="cpu", healthcheck_path="/ready", timeout=False
    )
    server.run(port=int(sys.argv[1]), log_level="error", generate_client_file=False)
