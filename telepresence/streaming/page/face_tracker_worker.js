// Worker thread that tracks faces with MediaPipe's face landmarker, whose files the daemon serves.

const HEADER = 12;
const POINTS = 478;
const SCORES = 52;
const VERSION = 1;

let number = 0;

/** Landmark packet for one frame of `width` x `height` pixels, `age` ms old (docs/protocols-page.md). */
function pack(found, width, height, age) {
  const points = found.faceLandmarks[0];
  const scores = found.faceBlendshapes[0]?.categories;
  const face = points?.length === POINTS && scores?.length === SCORES;
  const packet = new ArrayBuffer(HEADER + (face ? POINTS * 6 + SCORES : 0));
  const view = new DataView(packet);
  view.setUint8(0, VERSION);
  view.setUint8(1, face ? 1 : 0);
  view.setUint16(2, width, true);
  view.setUint16(4, height, true);
  view.setUint16(6, Math.min(500, Math.round(age)), true);
  view.setUint32(8, number++, true);
  if (!face) return packet;
  const write = (at, value) => view.setUint16(at, Math.max(0, Math.min(65535, Math.round(value * 32768))), true);
  points.forEach(({ x, y, z }, i) => {
    write(HEADER + 6 * i, x + 0.5);
    write(HEADER + 6 * i + 2, y + 0.5);
    write(HEADER + 6 * i + 4, z + 1);
  });
  for (const { index, score } of scores) view.setUint8(HEADER + POINTS * 6 + index, Math.round(255 * score));
  return packet;
}

async function load() {
  for (const name of ["vision.js", "loader.js", "vision.wasm", "model.task"]) {
    const response = await fetch(`/vision/${name}`);
    if (!response.ok) throw new Error((await response.text()).trim());
  }
  const { FaceLandmarker } = await import("/vision/vision.js");
  return FaceLandmarker.createFromOptions(
    { wasmLoaderPath: "/vision/loader.js", wasmBinaryPath: "/vision/vision.wasm" },
    {
      baseOptions: { modelAssetPath: "/vision/model.task", delegate: "CPU" },
      runningMode: "VIDEO",
      numFaces: 1,
      outputFaceBlendshapes: true,
    },
  );
}

/** Track the face in `frame`, and send its packet to the page. */
function track(landmarker, frame, width, height) {
  const began = performance.now();
  const found = landmarker.detectForVideo(frame, began);
  frame.close();
  const packet = pack(found, width, height, performance.now() - began);
  postMessage({ packet }, [packet]);
}

const landmarker = load();
landmarker.catch(() => {}); // the error is reported with the first frame

onmessage = async ({ data: { readable, frame } }) => {
  try {
    if (frame) track(await landmarker, frame, frame.width, frame.height);
    if (!readable) return;
    const loaded = await landmarker;
    const reader = readable.getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      track(loaded, value, value.displayWidth, value.displayHeight);
    }
  } catch (error) {
    postMessage({ error: error.message });
  }
};
