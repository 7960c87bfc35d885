// An exported policy keeps a cost limit in JavaScript:  npm install onnxruntime-node
//   node act.js outputs/ballcircle-seed0/onnx 20
// Reads a line of JSON per step, {"observation": [...], "cost": of the step before}, and writes the action.
const crypto = require("crypto");
const fs = require("fs");
const path = require("path");
const readline = require("readline");
const ort = require("onnxruntime-node");

async function main(folder, costLimit) {
  const contract = JSON.parse(fs.readFileSync(path.join(folder, "policy.json")));
  const graph = fs.readFileSync(path.join(folder, contract.graph.file));
  const sha256 = crypto.createHash("sha256").update(graph).digest("hex");
  if (sha256 !== contract.graph.sha256) throw new Error("policy.json is about another graph");
  const session = await ort.InferenceSession.create(graph, { intraOpNumThreads: 1 });
  const size = contract.inputs.observation.shape[1];
  const floats = (values, shape) => new ort.Tensor("float32", Float32Array.from(values), shape);

  let spent = 0;
  let step = 0;
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { observation, cost = 0 } = JSON.parse(line);
    if (observation.length !== size || !observation.every(Number.isFinite) || !(cost >= 0)) {
      throw new Error(`each line needs ${size} finite numbers as observation, and a cost of at least 0`);
    }
    spent += cost;
    const answer = await session.run({
      observation: floats(observation, [1, size]),
      cost_budget: floats([costLimit - spent], [1]),
      steps_left: floats([Math.max(contract.max_episode_steps - step, 1)], [1]),
      risk: floats([0.05], []),
    });
    step += 1;
    const fits = answer.feasible.data.some(Boolean); // where nothing fits, the safest acts
    console.log(JSON.stringify({ action: Array.from(answer.action.data), fits, spent }));
  }
}

main(process.argv[2], Number(process.argv[3])).catch((error) => {
  console.error(`error: ${error.message}`);
  process.exit(1);
});
