// The first screen: files are chosen or dropped, and sent.

import { Refusal, ask, send } from "./api.js";

const TOGETHER = 16; // stacks that are predicted each by itself
const byId = (id) => document.getElementById(id);

export class Intake {
  // `endings` are those of the files that the page takes; `added` is called with each stack that is being sent, and
  // `failed` with an error.
  constructor(endings, added, failed) {
    Object.assign(this, { endings, added, failed, asked: [] });
    byId("choose").onclick = () => byId("files").click();
    byId("choose-folder").onclick = () => byId("folder").click();
    for (const input of [byId("files"), byId("folder")]) {
      input.onchange = () => {
        const files = [...input.files];
        input.value = ""; // the same files may be chosen again
        this.take(files, files[0]?.webkitRelativePath.split("/")[0] ?? "");
      };
    }
    byId("as-one").onclick = () => this.answer([{ name: this.name, files: this.asked }]);
    byId("as-many").onclick = () => this.answer(this.asked.map((file) => ({ name: file.name, files: [file] })));
    this.acceptDrops();
  }

  acceptDrops() {
    const drop = byId("drop");
    addEventListener("dragover", (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
    addEventListener("dragleave", () => drop.classList.remove("over"));
    addEventListener("drop", async (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
      const files = (await Promise.all(entries.map(filesOf))).flat();
      this.take(files, entries.length === 1 && entries[0].isDirectory ? entries[0].name : "");
    });
  }

  // Takes the images among some files; of several it asks what they are. `folder` is the name of theirs.
  take(files, folder) {
    const isImage = (file) => this.endings.some((ending) => file.name.toLowerCase().endsWith(ending));
    const images = files.length > 1 ? files.filter((file) => isImage(file) && !file.name.startsWith(".")) : files;
    if (/\.zarr$/i.test(folder)) {
      this.failed(new Refusal(`${folder} is a Zarr, whose many small files are not sent: use mitoflow predict ${folder} OUTPUT.`));
      return;
    }
    if (files.length > 1 && !images.length) {
      this.failed(new Refusal(`None of the ${files.length} files is an image: ${this.endings.join(", ")}.`));
    }
    if (!images.length) return;
    const order = new Intl.Collator("en", { numeric: true });
    this.asked = images.sort((a, b) => order.compare(a.name, b.name));
    this.name = folder || `${images.length} slices`;
    if (images.length === 1) {
      this.answer([{ name: images[0].name, files: images }]);
      return;
    }
    byId("question").hidden = false;
    byId("question").firstElementChild.textContent = `${images.length} images, from ${images[0].name} to ${images.at(-1).name}.`;
    byId("as-many").disabled = images.length > TOGETHER;
    byId("as-many").title = images.length > TOGETHER ? `Up to ${TOGETHER}; for more, use mitoflow predict FOLDER MASKS` : "";
    this.added(null); // shows the first screen, where the question is
    byId("as-one").focus();
  }

  async answer(stacks) {
    byId("question").hidden = true;
    for (const stack of stacks) {
      try {
        await this.send(stack);
      } catch (error) {
        if (error.name !== "AbortError") this.failed(error);
      }
    }
  }

  async send({ name, files }) {
    const described = files.map((file) => ({ name: file.name, size: file.size }));
    const values = { name, files: described, voxel_size: byId("voxel-size").value };
    const result = await ask("POST", "/api/results", values);
    const total = Math.max(1, files.reduce((sum, file) => sum + file.size, 0));
    const upload = { abort: new AbortController(), share: 0 };
    this.added(result, upload);
    let before = 0;
    try {
      for (const [number, file] of files.entries()) {
        const path = `/api/results/${result.key}/uploads/${number}`;
        await send(path, file, (sent) => (upload.share = (before + sent) / total), upload.abort.signal);
        before += file.size;
      }
    } catch (error) {
      await ask("POST", `/api/results/${result.key}/cancel`).catch(() => {});
      throw error;
    }
  }
}

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) { // a reader gives a hundred entries at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    found.push(...some);
  }
  return (await Promise.all(found.map(filesOf))).flat();
}
