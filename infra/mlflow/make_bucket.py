"""Make the bucket that artifacts go to, unless it is there."""

from __future__ import annotations

import os

import boto3  # type: ignore[import-not-found, import-untyped, unused-ignore]
from botocore.exceptions import ClientError  # type: ignore[import-not-found, import-untyped, unused-ignore]


def main() -> None:
    """Endpoint, bucket and keys come from the environment."""
    bucket = os.environ["S3_BUCKET"]
    store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
    try:
        store.head_bucket(Bucket=bucket)
        print(f"bucket {bucket} is there")
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            raise
        store.create_bucket(Bucket=bucket)
        print(f"bucket {bucket} made")


if __name__ == "__main__":
    main()
