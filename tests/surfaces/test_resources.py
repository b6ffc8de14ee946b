import json

import pytest
from mcp import Client, MCPError
from mcp.types import PromptReference, ResourceTemplateReference
from tests.surfaces.fakes import VERSION

from ragtune_mcp.server import create_server

pytestmark = pytest.mark.anyio


async def test_status_and_the_templates_are_listed(core):
    async with Client(create_server(core=core)[0]) as session:
        resources = [str(each.uri) for each in (await session.list_resources()).resources]
        templates = [
            each.uri_template for each in (await session.list_resource_templates()).resource_templates
        ]
    assert resources == ["ragtune://status"]
    assert templates == [
        "ragtune://jobs/{job_id}",
        "ragtune://models/{version}",
        "ragtune://tests/{test_id}",
        "ragtune://tests/{test_id}/plot",
    ]


async def test_the_plot_of_a_test_is_an_image(core):
    async with Client(create_server(core=core)[0]) as session:
        content = (await session.read_resource("ragtune://tests/ab_1/plot")).contents[0]
    assert content.mime_type == "image/svg+xml"
    assert "<svg" in content.text


@pytest.mark.parametrize(
    ("uri", "field", "value"),
    [
        ("ragtune://status", "documents", 3),
        ("ragtune://jobs/ft_1", "job_id", "ft_1"),
        (f"ragtune://models/{VERSION}", "version", VERSION),
        ("ragtune://tests/ab_1", "test_id", "ab_1"),
    ],
)
async def test_a_resource_is_the_result_as_json(core, uri, field, value):
    async with Client(create_server(core=core)[0]) as session:
        content = (await session.read_resource(uri)).contents[0]
    assert content.mime_type == "application/json"
    assert json.loads(content.text)[field] == value


@pytest.mark.parametrize(
    ("uri", "code"), [("ragtune://jobs/nope", "unknown_job"), ("ragtune://tests/no", "unknown_test")]
)
async def test_an_unknown_id_is_a_missing_resource(core, uri, code):
    async with Client(create_server(core=core)[0]) as session:
        with pytest.raises(MCPError) as raised:
            await session.read_resource(uri)
    assert raised.value.code == -32602
    assert code in raised.value.message


async def test_an_unforeseen_error_is_hidden(core):
    async with Client(create_server(core=core)[0]) as session:
        with pytest.raises(MCPError) as raised:
            await session.read_resource("ragtune://jobs/crash")
    assert "internal" in raised.value.message
    assert "secret" not in raised.value.message


async def test_prompts_name_only_tools_that_exist(core):
    async with Client(create_server(core=core)[0]) as session:
        tools = {tool.name for tool in (await session.list_tools()).tools}
        loop = (await session.get_prompt("improve_retrieval")).messages[0].content.text
        rate = (await session.get_prompt("rate_last_results", {"query_id": "q_7"})).messages[0].content.text
    for step in ("generate_training_data", "start_finetune", "start_ab_test", "ab_results", "promote_model"):
        assert step in tools
        assert step in loop
    assert "record_feedback" in rate
    assert "'q_7'" in rate


@pytest.mark.parametrize(
    ("template", "argument", "typed", "expected"),
    [
        ("ragtune://jobs/{job_id}", "job_id", "ft", ["ft_1"]),
        ("ragtune://models/{version}", "version", "", [VERSION]),
        ("ragtune://models/{version}", "version", "zzz", []),
        ("ragtune://tests/{test_id}", "test_id", "ab", ["ab_1"]),
    ],
)
async def test_ids_are_completed_from_what_exists(core, template, argument, typed, expected):
    async with Client(create_server(core=core)[0]) as session:
        ref = ResourceTemplateReference(type="ref/resource", uri=template)
        answer = await session.complete(ref, {"name": argument, "value": typed})
    assert answer.completion.values == expected


async def test_prompt_arguments_are_not_completed(core):
    async with Client(create_server(core=core)[0]) as session:
        ref = PromptReference(type="ref/prompt", name="rate_last_results")
        answer = await session.complete(ref, {"name": "query_id", "value": ""})
    assert answer.completion.values == []
