// Vercel's `ai` with its provider for OpenAI-compatible servers: text, stream, objects, tools.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "fastchat",
  baseURL: process.env.BASE_URL,
  apiKey: "any",
  supportsStructuredOutputs: true,
});
const model = provider(process.env.MODEL);
const common = { model, temperature: 0, maxRetries: 0 };

const whole = await generateText({ ...common, prompt: "Say hello.", maxOutputTokens: 16 });
assert.ok(whole.text && whole.usage.outputTokens <= 16);
let said = "";
for await (const piece of streamText({ ...common, prompt: "Say hello.", maxOutputTokens: 16 }).textStream) said += piece;
assert.equal(said, whole.text);

const schema = z.object({ city: z.enum(["Paris", "Rome"]), sunny: z.boolean() });
const made = await generateObject({ ...common, schema, prompt: "It is sunny in Paris.", maxOutputTokens: 100 });
assert.equal(typeof made.object.sunny, "boolean");

const called = await generateText({
  ...common,
  prompt: "What is the weather in Paris?",
  tools: { getWeather: tool({ description: "The weather", inputSchema: z.object({ city: z.enum(["Paris", "Rome"]) }) }) },
  toolChoice: "required",
  maxOutputTokens: 64,
});
assert.equal(called.toolCalls[0].toolName, "getWeather");
console.log(JSON.stringify({ ok: true }));
