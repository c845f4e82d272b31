# The server of docs/serving.md. For processors:
#     docker build -t lohrec-serve .
# for GPUs, whose torch comes from the index of its CUDA build:
#     docker build -t lohrec-serve --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# Run it with a student's folder, its data set (titles and categories), and a volume that keeps the events:
#     docker run -p 127.0.0.1:8000:8000 -v $PWD/runs/demo/students/dwr+memory:/student:ro \
#         -v $PWD/runs/demo/dataset:/dataset:ro -v lohrec-events:/events lohrec-serve
# Flags after the image's name are added to those below: --gpus all ... lohrec-serve --device cuda
FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PYTHONUNBUFFERED=1
WORKDIR /app
# torch first and alone: it is the largest part, and a change of the sources does not fetch it again
COPY constraints.txt ./
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY distill distill
COPY student student
COPY teacher teacher
RUN pip install --no-cache-dir -c constraints.txt '.[serve]' && rm -rf distill student teacher build \
    && useradd --create-home serve && mkdir /events && chown serve /events
COPY scripts/serve.py scripts/serve.py
USER serve
EXPOSE 8000
VOLUME /events
HEALTHCHECK --start-period=60s --interval=10s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["python", "scripts/serve.py", "--student", "/student", "--host", "0.0.0.0", "--events", "/events/events.sqlite"]
