# The server of docs/serving.md. For processors:
#     docker build -t lohrec-serve .
# for GPUs, whose torch comes from the index of its CUDA build:
#     docker build -t lohrec-serve --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# Run it with a student's folder: docker run -p 8000:8000 -v $PWD/runs/demo/students/dwr+memory:/student:ro lohrec-serve
FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY distill distill
COPY student student
COPY teacher teacher
COPY scripts scripts
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)" \
    && pip install --no-cache-dir -c constraints.txt '.[serve]' \
    && useradd --create-home serve && mkdir /events && chown serve /events
ENV PYTHONPATH=/app
USER serve
EXPOSE 8000
VOLUME /events
ENTRYPOINT ["python", "scripts/serve.py"]
CMD ["--student", "/student", "--host", "0.0.0.0", "--events", "/events/events.sqlite"]
