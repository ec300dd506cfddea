// Requests to the server of the page. What it refuses is thrown as one line.

const SILENT = "The page does not answer; see whether `mitoflow app` still runs.";

export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export async function ask(method, path, values) {
  const response = await answered(path, { method, body: values && JSON.stringify(values) });
  return response.json();
}

// Returns the numbers of a tile, as a typed array of the class `Numbers`.
export async function numbers(path, Numbers, signal) {
  const response = await answered(path, { signal });
  return new Numbers(await response.arrayBuffer());
}

async function answered(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Refusal(SILENT, 0);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  return new Refusal(body.error || `The page answered with the status ${response.status}.`, response.status);
}

// Sends a file; `advance` is called with the bytes that are sent so far. `fetch` does not tell.
export function send(path, file, advance, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", path);
    request.responseType = "json";
    request.upload.onprogress = (event) => advance(event.loaded);
    request.onload = () => {
      if (request.status === 200) resolve(request.response);
      else reject(new Refusal(request.response?.error || SILENT, request.status));
    };
    request.onerror = () => reject(new Refusal(SILENT, 0));
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    signal.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}
