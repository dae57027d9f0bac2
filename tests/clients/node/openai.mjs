// The official client of OpenAI for node: chat, stream, tools, parse, responses.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "any", maxRetries: 0 });
const model = process.env.MODEL;
const messages = [{ role: "user", content: "What is the weather in Paris?" }];
const fields = { model, messages, temperature: 0, max_tokens: 16 };

const whole = await client.chat.completions.create(fields);
const stream = await client.chat.completions.create({ ...fields, stream: true });
let said = "";
for await (const chunk of stream) said += chunk.choices[0]?.delta?.content ?? "";
assert.equal(said, whole.choices[0].message.content);

const Weather = z.object({ city: z.enum(["Paris", "Rome"]), sunny: z.boolean() });
const parsed = await client.chat.completions.parse({
  ...fields,
  max_tokens: 100,
  response_format: zodResponseFormat(Weather, "weather"),
});
assert.equal(typeof parsed.choices[0].message.parsed.sunny, "boolean");

const parameters = { type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const called = await client.chat.completions.create({ ...fields, max_tokens: 64, tools, tool_choice: "required" });
assert.ok(["Paris", "Rome"].includes(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).city));

const asked = { model, input: "Say hello.", temperature: 0, max_output_tokens: 16 };
const response = await client.responses.create(asked);
let words = "";
for await (const event of await client.responses.create({ ...asked, stream: true })) {
  if (event.type === "response.output_text.delta") words += event.delta;
}
assert.equal(words, response.output_text);

await assert.rejects(client.chat.completions.create({ ...fields, model: "nobody" }), OpenAI.NotFoundError);
console.log(JSON.stringify({ ok: true }));
